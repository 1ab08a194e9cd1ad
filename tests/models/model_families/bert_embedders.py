"""Dense embedders on BertModel: all-MiniLM, E5 v1 and v2, BGE en v1.5, GTE v1, Snowflake Arctic Embed v1.

Where the contracts come from. Prompts, pooling and templates: MTEB's model definitions (e5_models, bge_models,
gte_models, arctic_models) and the model cards. Files: the repositories' own listings; all-MiniLM-L6-v2's 90,868,376
bytes are its weights with the pooler and an int64 position_ids of 512, MTEB counts the 512 for GTE, E5's pickles name a
LongStorage. Arctic's files (436 MB for m-v1.5, 90.3 MB for xs) are too small to hold a pooler. Arctic v1's query prompt
"Represent this sentence for searching relevant passages: " stands in its config_sentence_transformers.json and in
github.com/Snowflake-Labs/arctic-embed's README, which pools the first token and adds nothing to documents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from model_families.encoder_layout import Layout, write_sentence_files
from model_families.encoder_mutants import DENSE_MUTANTS, Mutant, encoder_mutants, prompt_edit
from model_families.encoder_reference import EncoderReference
from model_families.encoder_weights import EncoderShape, encoder_plan
from model_families.family import Family, Role

RETRIEVAL_PROMPT = "Represent this sentence for searching relevant passages: "
E5_PROMPTS: dict[Role, str] = {"query": "query: ", "document": "passage: "}
BGE_PROMPTS: dict[Role, str] = {"query": RETRIEVAL_PROMPT}
BASE = EncoderShape(layers=12, hidden=768, heads=12, inner=3072, positions=512, types=2, vocab=30522)
SMALL = EncoderShape(layers=3, hidden=64, heads=4, inner=128, positions=700, types=2)
WIDE = EncoderShape(layers=2, hidden=128, heads=2, inner=192, positions=700, types=2)
DEEP = EncoderShape(layers=4, hidden=96, heads=4, inner=128, positions=700, types=2)


def sentence_files(
    pooling: Literal["cls_token", "mean_tokens"],
    *,
    limit_offset: int = 0,
    prompts: dict[str, str] | None = None,
    has_versions: bool = True,
    num_flags: int = 4,
    has_limits: bool = True,
    settings: dict[str, object] | None = None,
) -> Callable[[Path, EncoderShape], None]:
    """A layout's ``files``: those of write_sentence_files, with a limit of all positions but ``limit_offset``."""

    def write(folder: Path, shape: EncoderShape) -> None:
        write_sentence_files(
            folder,
            hidden=shape.hidden,
            pooling=pooling,
            max_tokens=shape.positions - limit_offset if has_limits else None,
            prompts=prompts,
            has_versions=has_versions,
            num_flags=num_flags,
            settings=settings,
        )

    return write


def dense_family(
    layout: Layout,
    reference: Callable[[Path], EncoderReference],
    *,
    roles: tuple[Role | None, ...] = (None,),
    more: dict[str, Mutant] | None = None,
    outputs: tuple[str, ...] = ("dense",),
) -> Family:
    """One row of the table."""
    tiny = layout.tiny
    mutants = encoder_mutants(kind=layout.kind, layers=tiny.layers, heads=tiny.heads) | DENSE_MUTANTS | (more or {})
    return Family(
        layout.name, "embedder", layout.build, reference, mutants, roles=roles, outputs=outputs,
        has_full=layout.full is not None,
    )  # fmt: skip


def _arctic(name: str, tiny: EncoderShape) -> Family:
    layout = Layout(
        name,
        tiny,
        plan=partial(encoder_plan, has_pooler=False),
        files=sentence_files(
            "cls_token", prompts={"query": RETRIEVAL_PROMPT}, num_flags=6,
            settings={"model_args": {"add_pooling_layer": False}},
        ),
    )  # fmt: skip
    return dense_family(
        layout, EncoderReference, roles=("query", "document"), more={"prompt": prompt_edit("query", "query: ")}
    )


MINILM = Layout(
    "all-MiniLM-L6-v2", SMALL, has_position_ids=True, has_baked_limits=True, files=sentence_files("mean_tokens"),
    keys={"gradient_checkpointing": False},
)  # fmt: skip
E5_FILES = sentence_files("mean_tokens", has_versions=False)
E5_V1 = Layout("e5-small", SMALL, has_position_ids=True, files=E5_FILES)
E5_V2 = Layout("e5-base-v2", WIDE, BASE, has_position_ids=True, files=E5_FILES)
BGE = Layout(
    "bge-base-en-v1.5", DEEP, BASE, has_position_ids=True,
    files=sentence_files("cls_token", settings={"do_lower_case": True}),
    keys={"gradient_checkpointing": False, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
)  # fmt: skip
GTE = Layout(
    "gte-base", WIDE, dtype=torch.float16, has_position_ids=True,
    files=sentence_files("mean_tokens", has_versions=False),
)  # fmt: skip

FAMILIES = (
    dense_family(MINILM, EncoderReference),
    dense_family(E5_V1, partial(EncoderReference, prompts=E5_PROMPTS), roles=("query", "document")),
    dense_family(E5_V2, partial(EncoderReference, prompts=E5_PROMPTS), roles=("query", "document")),
    dense_family(BGE, partial(EncoderReference, prompts=BGE_PROMPTS), roles=("query", "document")),
    dense_family(GTE, EncoderReference),
    _arctic("snowflake-arctic-embed-s", SMALL),
    _arctic("snowflake-arctic-embed-m", WIDE),
    _arctic("snowflake-arctic-embed-l", DEEP),
)
