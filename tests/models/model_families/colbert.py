"""Late interaction on BERT: the layouts of Stanford's ColBERT and of PyLate.

Where the contract comes from: github.com/stanford-futuredata/ColBERT (modeling/hf_colbert.py, modeling/colbert.py,
modeling/tokenization, infra/config/settings.py), the artifact.metadata of answerdotai/answerai-colbert-small-v1 and
colbert-ir/colbertv2.0, and sentence-transformers' MultiVectorEncoder, which opens both layouts.

A text is [CLS], the side's marker ([unused0] for queries, [unused1] for documents, put in as an id: in text it would be
four pieces), the text, [SEP]. Queries are cut to query_maxlen tokens, special tokens included, and filled up to it with
[MASK]; nothing attends to these, unless attend_to_mask_tokens says so, and all have a vector. Documents are cut to
doc_maxlen; tokens that are one punctuation mark lose their vector, the special tokens keep theirs. A vector is
``linear.weight`` on the state, without bias, normalised; the score is the sum over query tokens of their best match.

answerai-colbert-small-v1 carries the model twice since its revision 0aa70ad: at the root for ColBERT and, for PyLate,
in 0_Transformer (names without ``bert.``, no pooler) and 1_Dense. Its modules.json has 223 bytes, which fit the type
``pylate.models.Dense`` and not ``pylate.models.Dense.Dense``.
"""

from __future__ import annotations

import shutil
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model_families.colbert_reference import ARTIFACT, SETTINGS, LateReference, read_pylate, read_stanford
from model_families.encoder_layout import Layout, write_modules
from model_families.encoder_mutants import Mutant, encoder_mutants
from model_families.encoder_reference import read_json
from model_families.encoder_weights import EncoderShape, encoder_plan
from model_families.family import Family
from model_families.files import edit_json, write_json
from model_families.weights import Plan, linear

QUERY_MARKER, DOCUMENT_MARKER = "[unused0]", "[unused1]"
QUERY_LENGTH, DOCUMENT_LENGTH = 32, 300
SMALL = EncoderShape(layers=3, hidden=64, heads=4, inner=128, positions=512, types=2)
WIDE = EncoderShape(layers=2, hidden=128, heads=2, inner=192, positions=512, types=2)


def _plan(shape: EncoderShape, *, dimensions: int) -> Plan:
    """HF_ColBERT: a BertModel below ``bert.`` and the projection beside it."""
    return encoder_plan(shape, prefix="bert.") | {"linear.weight": linear(dimensions, shape.hidden)}


def _write_old_artifact(folder: Path, dimensions: int) -> None:
    """colbertv2.0's, which names no markers: they are ColBERT's defaults."""
    values = {
        "nprobe": 2, "ncandidates": 8192, "index_path": None, "nbits": 1, "kmeans_niters": 20, "similarity": "cosine",
        "bsize": 8, "accumsteps": 1, "lr": 1e-05, "maxsteps": 400000, "save_every": None, "resume": False,
        "warmup": 20000, "warmup_bert": None, "relu": False, "nway": 64, "use_ib_negatives": True,
        "query_maxlen": QUERY_LENGTH, "attend_to_mask_tokens": False, "dim": dimensions, "doc_maxlen": 180,
        "mask_punctuation": True, "checkpoint": "bert-base-uncased",
    }  # fmt: skip
    write_json(folder / ARTIFACT, values)


def _write_artifact(folder: Path, dimensions: int) -> None:
    """answerai-colbert-small-v1's."""
    values = {
        "query_token_id": QUERY_MARKER, "doc_token_id": DOCUMENT_MARKER, "query_token": "[Q]", "doc_token": "[D]",
        "ncells": None, "centroid_score_threshold": None, "ndocs": None, "load_index_with_mmap": False,
        "index_path": None, "index_bsize": 64, "nbits": 1, "kmeans_niters": 4, "resume": False, "pool_factor": 1,
        "clustering_mode": "hierarchical", "protected_tokens": 0, "similarity": "cosine", "bsize": 32,
        "accumsteps": 1, "lr": 1e-05, "maxsteps": 15626, "save_every": None, "warmup": 781, "warmup_bert": None,
        "relu": False, "nway": 32, "use_ib_negatives": False, "reranker": False, "distillation_alpha": 1.0,
        "ignore_scores": False, "model_name": "bert-base-uncased", "query_maxlen": QUERY_LENGTH,
        "attend_to_mask_tokens": False, "interaction": "colbert", "dim": dimensions, "doc_maxlen": DOCUMENT_LENGTH,
        "mask_punctuation": True, "checkpoint": "bert-base-uncased",
    }  # fmt: skip
    write_json(folder / ARTIFACT, values)


def _write_settings(folder: Path) -> None:
    values = {
        "__version__": {"sentence_transformers": "3.4.1", "transformers": "4.48.2", "pytorch": "2.5.1+cu124"},
        "prompts": {}, "default_prompt_name": None, "similarity_fn_name": None,
        "query_prefix": QUERY_MARKER, "document_prefix": DOCUMENT_MARKER, "query_length": QUERY_LENGTH,
        "document_length": DOCUMENT_LENGTH, "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation),
    }  # fmt: skip
    write_json(folder / SETTINGS, values)


def _write_dense(folder: Path, weight: torch.Tensor) -> None:
    """PyLate's projection, of a weight [dimensions, hidden]."""
    out, width = weight.shape
    identity = "torch.nn.modules.linear.Identity"
    config = {"in_features": width, "out_features": out, "bias": False, "activation_function": identity}
    write_json(folder / "config.json", config)
    save_file({"linear.weight": weight}, folder / "model.safetensors", {"format": "pt"})


def _split(folder: Path, encoder: Path, dense_type: str) -> None:
    """The root's weights as PyLate stores them: the encoder in one folder, the projection in 1_Dense."""
    tensors = load_file(folder / "model.safetensors")
    _write_dense(folder / "1_Dense", tensors.pop("linear.weight"))
    bare = {name.removeprefix("bert."): tensor for name, tensor in tensors.items() if ".pooler." not in name}
    encoder.mkdir(exist_ok=True)
    save_file(bare, encoder / "model.safetensors", {"format": "pt"})
    write_json(encoder / "config.json", read_json(folder / "config.json") | {"architectures": ["BertModel"]})
    path = "" if encoder == folder else encoder.name
    write_modules(folder, (path, "sentence_transformers.models.Transformer"), ("1_Dense", dense_type))
    _write_settings(folder)


def _write_stanford(folder: Path, shape: EncoderShape, *, dimensions: int) -> None:
    _write_old_artifact(folder, dimensions)


def _write_both(folder: Path, shape: EncoderShape, *, dimensions: int) -> None:
    _write_artifact(folder, dimensions)
    copy = folder / "0_Transformer"
    _split(folder, copy, "pylate.models.Dense")
    shutil.copy(folder / "tokenizer.json", copy)
    limits = {"max_seq_length": shape.positions, "do_lower_case": False, "model_args": {"add_pooling_layer": False}}
    write_json(copy / "sentence_bert_config.json", limits)


def _write_pylate(folder: Path, shape: EncoderShape, *, dimensions: int) -> None:
    _split(folder, folder, "pylate.models.Dense.Dense")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": shape.positions - 1, "do_lower_case": False})


def _edit_artifact(**values: object) -> Mutant:
    return lambda folder: edit_json(folder / ARTIFACT, lambda artifact: artifact.update(values))


def _edit_settings(**values: object) -> Mutant:
    return lambda folder: edit_json(folder / SETTINGS, lambda settings: settings.update(values))


def _in_turn(*mutants: Mutant) -> Mutant:
    def mutate(folder: Path) -> None:
        for mutant in mutants:
            mutant(folder)

    return mutate


STANFORD_MUTANTS = {
    "markers exchanged": _edit_artifact(query_token_id=DOCUMENT_MARKER, doc_token_id=QUERY_MARKER),
    "expansion is seen": _edit_artifact(attend_to_mask_tokens=True),
    "longer queries": _edit_artifact(query_maxlen=QUERY_LENGTH + 8),
    "punctuation has vectors": _edit_artifact(mask_punctuation=False),
}
PYLATE_MUTANTS = {
    "markers exchanged": _edit_settings(query_prefix=DOCUMENT_MARKER, document_prefix=QUERY_MARKER),
    "expansion is seen": _edit_settings(attend_to_expansion_tokens=True),
    "longer queries": _edit_settings(query_length=QUERY_LENGTH + 8),
    "punctuation has vectors": _edit_settings(skiplist_words=[]),
}
BOTH_MUTANTS = {name: _in_turn(STANFORD_MUTANTS[name], PYLATE_MUTANTS[name]) for name in STANFORD_MUTANTS}


def _family(
    name: str,
    shape: EncoderShape,
    dimensions: int,
    files: Callable[..., None],
    reference: Callable[[Path], LateReference],
    mutants: dict[str, Mutant],
) -> Family:
    layout = Layout(
        name, shape, architecture="HF_ColBERT", plan=partial(_plan, dimensions=dimensions),
        files=partial(files, dimensions=dimensions),
    )  # fmt: skip
    every = encoder_mutants(kind="bert", layers=shape.layers, heads=shape.heads) | mutants
    return Family(name, "embedder", layout.build, reference, every, roles=("query", "document"), outputs=("tokens",))


FAMILIES = (
    _family("colbertv2.0", WIDE, 128, _write_stanford, read_stanford, STANFORD_MUTANTS),
    _family("answerai-colbert-small-v1", SMALL, 96, _write_both, read_stanford, BOTH_MUTANTS),
    _family("colbertv2.0-pylate", SMALL, 128, _write_pylate, read_pylate, PYLATE_MUTANTS),
)
