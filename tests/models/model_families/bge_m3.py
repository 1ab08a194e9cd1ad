"""BGE-M3: XLM-RoBERTa with 8194 positions and three outputs, two of them through heads that are torch pickles.

The rules are FlagEmbedding's (inference/embedder/encoder_only/m3.py and finetune/embedder/encoder_only/m3/modeling.py).
Dense: the first token's state, normalised. Sparse: relu(sparse_linear(state)), the largest of each token id, without
<s>, </s>, <pad> and <unk> and without zeros. Tokens: colbert_linear of all states but the first, </s> among them, each
normalised; the score is the mean over query tokens of their best match. The heads' files hold float16 state dicts of
torch.nn.Linear.

``build`` writes what a server can read: model.safetensors, the heads' pickles and the safetensors made of these.
``as_published`` leaves what the repository's main branch has, where the encoder too is a pickle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from model_families.bert_embedders import dense_family, sentence_files
from model_families.encoder_mutants import Mutant
from model_families.encoder_reference import EncoderReference, unit
from model_families.encoder_weights import EncoderShape
from model_families.family import Role, Size, Vectors
from model_families.weights import draw, linear, shift
from model_families.xlm_roberta_embedders import roberta_layout

COLBERT, SPARSE = "colbert_linear", "sparse_linear"
FULL = EncoderShape(layers=24, hidden=1024, heads=16, inner=4096, positions=8194, types=1, vocab=250002)
TINY = EncoderShape(layers=3, hidden=64, heads=2, inner=128, positions=702, types=1)
LAYOUT = roberta_layout("bge-m3", TINY, FULL, files=sentence_files("cls_token", limit_offset=2))


def build(folder: Path, size: Size, seed: int) -> None:
    """The directory with both heads; see Family."""
    LAYOUT.build(folder, size, seed)
    hidden = (FULL if size == "full" else TINY).hidden
    for name, width, gain in ((COLBERT, hidden, 1.0), (SPARSE, 1, 0.3)):
        plan = {f"{name}.weight": linear(width, hidden, gain), f"{name}.bias": shift(width, 0.1)}
        _write_head(folder / name, {key: draw(plan, f"{name}.{key}", seed).half() for key in ("weight", "bias")})


def _write_head(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(OrderedDict(tensors), path.with_suffix(".pt"))
    save_file(tensors, path.with_suffix(".safetensors"), {"format": "pt"})


def as_published(folder: Path) -> None:
    """Pickles alone: pytorch_model.bin and the heads."""
    weights = folder / "model.safetensors"
    torch.save(OrderedDict(load_file(weights)), folder / "pytorch_model.bin")
    for path in (weights, *((folder / name).with_suffix(".safetensors") for name in (COLBERT, SPARSE))):
        path.unlink()


class M3Reference(EncoderReference):
    """All three outputs of a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.colbert, self.sparse_head = (_open_head(folder / name, self.model.dtype) for name in (COLBERT, SPARSE))
        self.unused = {self.tokenizer.token_to_id(token) for token in ("<s>", "</s>", "<pad>", "<unk>")}

    def sparse(self, text: str) -> dict[int, float]:
        """Token id -> weight above 0."""
        ids = self.token_ids(text)
        with torch.inference_mode():
            weights = self.sparse_head(self.states(ids)).relu().squeeze(-1).tolist()
        found: dict[int, float] = {}
        for token, weight in zip(ids, weights, strict=True):
            if weight > 0 and token not in self.unused:
                found[token] = max(weight, found.get(token, 0.0))
        return found

    def tokens(self, text: str, role: Role) -> Vectors:
        """[tokens - 1, hidden], each normalised; both roles are read alike."""
        with torch.inference_mode():
            return unit(self.colbert(self.states(self.token_ids(text))[1:]))

    def late_score(self, query: str, document: str) -> float:
        """The mean over query tokens of their best match."""
        matches = self.tokens(query, "query") @ self.tokens(document, "document").T
        return float(np.mean(matches.max(-1)))


def _open_head(path: Path, dtype: torch.dtype) -> torch.nn.Linear:
    tensors = torch.load(path.with_suffix(".pt"), weights_only=True)
    head = torch.nn.Linear(*reversed(tensors["weight"].shape))
    head.load_state_dict(tensors)
    return head.to(dtype)


def _edit_head(name: str, edit: Callable[[dict[str, torch.Tensor]], None]) -> Mutant:
    def mutate(folder: Path) -> None:
        tensors = dict(torch.load(folder / f"{name}.pt", weights_only=True))
        edit(tensors)
        _write_head(folder / name, tensors)

    return mutate


def _no_bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors["bias"] = torch.zeros_like(tensors["bias"])


def _transposed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"] = tensors["weight"].T.contiguous()


# Beside Family's mutants, since the dense vectors do not see them: (output, edit) by name.
HEAD_MUTANTS = {
    "sparse bias dropped": ("sparse", _edit_head(SPARSE, _no_bias)),
    "colbert bias dropped": ("tokens", _edit_head(COLBERT, _no_bias)),
    "colbert transposed": ("tokens", _edit_head(COLBERT, _transposed)),
}
OUTPUTS = ("dense", "sparse", "tokens")
FAMILIES = (replace(dense_family(LAYOUT, M3Reference, outputs=OUTPUTS), build=build),)
