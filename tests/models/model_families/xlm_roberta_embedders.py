"""Embedders with XLM-RoBERTa's tokenizer: multilingual E5 and Snowflake Arctic Embed 2.0.

Where the contracts come from. multilingual-e5-small is a BertModel (``pad_token_id`` 0, positions from 0) with XLM-R's
tokenizer, whose 250002 ids leave 35 rows of the word table free; base and large are XLMRobertaModel. The instruct model
has MTEB's template with a space behind ``Query:``, is stored in float16 and, in newer revisions, names its limit in
sentence_xlm-roberta_config.json. Arctic Embed 2.0 (card and config_sentence_transformers.json) puts "query: " before
queries and nothing before documents, pools the first token and declares 256 of its 1024 dimensions. BGE-M3 stands in a
module of its own, since it has heads.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from model_families.bert_embedders import E5_PROMPTS, dense_family, sentence_files
from model_families.encoder_layout import Layout
from model_families.encoder_mutants import prompt_edit
from model_families.encoder_reference import EncoderReference, InstructReference
from model_families.encoder_weights import EncoderShape
from model_families.files import write_json

LARGE = EncoderShape(layers=24, hidden=1024, heads=16, inner=4096, positions=514, types=1, vocab=250002)
SMALL = EncoderShape(layers=3, hidden=64, heads=2, inner=128, positions=702, types=1)
DEEP = EncoderShape(layers=4, hidden=96, heads=4, inner=160, positions=702, types=1)
BERT_SMALL = EncoderShape(layers=3, hidden=64, heads=4, inner=128, positions=700, types=2)

ME5_FILES = sentence_files("mean_tokens", limit_offset=2, has_versions=False)
ME5_SMALL = Layout(
    "multilingual-e5-small", BERT_SMALL, tokenizer="unigram", spare_rows=35, has_position_ids=True,
    keys={"tokenizer_class": "XLMRobertaTokenizer"}, files=sentence_files("mean_tokens", has_versions=False),
)  # fmt: skip


def _instruct_files(folder: Path, shape: EncoderShape) -> None:
    sentence_files("mean_tokens", has_limits=False, num_flags=6)(folder, shape)
    limits = {"max_seq_length": shape.positions - 2, "do_lower_case": False}
    write_json(folder / "sentence_xlm-roberta_config.json", limits)


def roberta_layout(name: str, tiny: EncoderShape, full: EncoderShape | None = None, **more: object) -> Layout:
    """A repository of XLMRobertaModel."""
    kind = {"kind": "xlm-roberta", "architecture": "XLMRobertaModel", "tokenizer": "unigram"}
    return Layout(name, tiny, full, **(kind | more))  # type: ignore[arg-type]


ME5_BASE = roberta_layout("multilingual-e5-base", SMALL, has_position_ids=True, files=ME5_FILES)
ME5_LARGE = roberta_layout("multilingual-e5-large", DEEP, LARGE, has_position_ids=True, files=ME5_FILES)
ME5_INSTRUCT = roberta_layout(
    "multilingual-e5-large-instruct", SMALL, dtype=torch.float16, files=_instruct_files
)  # fmt: skip
ARCTIC = roberta_layout(
    "snowflake-arctic-embed-l-v2.0", SMALL,
    files=sentence_files("cls_token", limit_offset=2, prompts={"query": "query: "}, num_flags=6),
)  # fmt: skip

E5_REFERENCE = partial(EncoderReference, prompts=E5_PROMPTS)
BOTH = ("query", "document")
FAMILIES = (
    dense_family(ME5_SMALL, E5_REFERENCE, roles=BOTH),
    dense_family(ME5_BASE, E5_REFERENCE, roles=BOTH),
    dense_family(ME5_LARGE, E5_REFERENCE, roles=BOTH),
    dense_family(ME5_INSTRUCT, InstructReference, roles=BOTH),
    dense_family(
        ARCTIC, EncoderReference, roles=BOTH,
        more={"prompt": prompt_edit("query", "Represent this sentence for searching relevant passages: ")},
    ),
)  # fmt: skip
