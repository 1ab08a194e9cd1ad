"""A model folder's heads, as its contract says: taken from the checkpoint, or from the files beside it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import torch

from embedmux.server.backbones.layers import Linear
from embedmux.server.backbones.weights import Checkpoint
from embedmux.server.checkpoint.encoders import COLBERT, SPARSE
from embedmux.server.checkpoint.folder import ModelFolder
from embedmux.server.contract import Contract, LateContract, ScoreKind
from embedmux.server.heads.dense import DenseModules, NormedCut, Projections
from embedmux.server.heads.score import Classifier, TokenLogits
from embedmux.server.heads.tokens import SparseWeights, TokenVectors
from embedmux.server.records import Output

SPARSE_FILE, COLBERT_FILE = f"{SPARSE}.safetensors", f"{COLBERT}.safetensors"


@dataclass(frozen=True, slots=True)
class Heads:
    """What a model has behind its backbone; None where it has no such head."""

    dense: DenseModules | NormedCut | Projections | None = None
    tokens: TokenVectors | None = None
    sparse: SparseWeights | None = None
    score: Classifier | TokenLogits | None = None
    digest: str = ""  # of the files beside the checkpoint


def build_heads(contract: Contract, checkpoint: Checkpoint, hidden: int, words: torch.Tensor) -> Heads:
    """The heads, float32, on the checkpoint's device. ``words`` [vocabulary, hidden] serves as a tied language head."""
    reader = _Reader(checkpoint, ModelFolder(checkpoint.folder), hidden)
    dense: DenseModules | NormedCut | Projections | None = None
    if contract.dense_modules:
        dense = DenseModules([reader.module(name) for name in contract.dense_modules])
    elif contract.projections is not None:
        dense = Projections(reader.chain(contract.projections, contract.sizes))
    elif contract.norms_before_cut:
        dense = NormedCut(hidden, checkpoint.device)
    tokens: TokenVectors | None = None
    sparse: SparseWeights | None = None
    score: Classifier | TokenLogits | None = None
    if contract.late is not None:
        late = contract.late
        tokens = TokenVectors(reader.token_layers(late), kept=late.kept, normalizes=late.is_normalized)
    if Output.SPARSE in contract.outputs:
        sparse = SparseWeights(reader.linear(SPARSE_FILE, 1), ignored=contract.sparse_ignored)
    if contract.score is not None and contract.score.kind is ScoreKind.CLASSIFIER:
        score = reader.classifier()
    elif contract.score is not None and contract.score.kind is ScoreKind.LOGITS:
        chosen = [contract.score.positive_token, contract.score.negative_token]
        rows = [token for token in chosen if token is not None]
        head = checkpoint.take("lm_head.weight", tuple(words.shape)) if checkpoint.has("lm_head.weight") else words
        score = TokenLogits(Linear(head[rows].float()))
    return Heads(dense, tokens, sparse, score, reader.digest())


class _Reader:
    """Heads' tensors, from the model's checkpoint and from files of their own."""

    def __init__(self, checkpoint: Checkpoint, folder: ModelFolder, hidden: int) -> None:
        self._checkpoint, self._folder, self._hidden = checkpoint, folder, hidden
        self._files: list[Checkpoint] = []

    def linear(self, file: str, out: int) -> Linear:
        """weight [out, hidden] and bias [out] of a file that holds one linear."""
        stored = self._open(self._folder.path, file)
        found = Linear(stored.take("weight", (out, self._hidden)), stored.take("bias", (out,)))
        stored.finish(lambda _: False)
        return found

    def module(self, name: str) -> Linear:
        """A Dense module's folder of sentence-transformers."""
        config = self._folder.config(f"{name}/config.json")
        config.require("activation_function", "torch.nn.modules.linear.Identity")
        width, out = config.integer("in_features"), config.integer("out_features")
        stored = self._open(self._folder.path / name, "model.safetensors")
        bias = stored.take("linear.bias", (out,)) if config.flag("bias", True) else None
        found = Linear(stored.take("linear.weight", (out, width)), bias)
        stored.finish(lambda _: False)
        return found

    def chain(self, file: str, sizes: tuple[int, ...]) -> dict[int, Linear]:
        """Matrices from each size to the next smaller one, told by their shapes: [in, out], or [out, in] as linears."""
        stored = self._open(self._folder.path, file)
        found = {}
        for width, out in itertools.pairwise(sizes):
            name, is_linear = stored.find({(width, out): False, (out, width): True})
            weight = stored.take(name, (out, width) if is_linear else (width, out))
            found[out] = Linear(weight if is_linear else weight.T.contiguous())
        stored.finish(lambda _: False)
        return found

    def token_layers(self, late: LateContract) -> list[Linear]:
        """The projection of token states, wherever the family keeps it."""
        checkpoint, hidden, out = self._checkpoint, self._hidden, late.dimensions
        if checkpoint.has("linear.weight"):
            return [Linear(checkpoint.take("linear.weight", (out, hidden)))]
        if checkpoint.has("projector.0.weight"):
            inner = (checkpoint.shape("projector.0.weight") or (out,))[0]
            return [
                Linear(checkpoint.take("projector.0.weight", (inner, hidden)), self._bias("projector.0", inner)),
                Linear(checkpoint.take("projector.2.weight", (out, inner)), self._bias("projector.2", out)),
            ]
        if self._folder.has(COLBERT_FILE):
            return [self.linear(COLBERT_FILE, out)]
        if self._folder.has("1_Dense"):
            return [self.module("1_Dense")]
        return checkpoint.reject(f"it has no projection to token vectors of {out} dimensions")

    def classifier(self) -> Classifier:
        """The head of a sequence classifier with one label, in the layout of its architecture."""
        checkpoint, hidden = self._checkpoint, self._hidden
        if checkpoint.has("score.weight"):  # decoders
            return Classifier(None, Linear(checkpoint.take("score.weight", (1, hidden))))
        if checkpoint.has("classifier.out_proj.weight"):  # XLM-R
            return Classifier(self._dense("classifier.dense"), self._dense("classifier.out_proj", 1), activation="tanh")
        if checkpoint.has("head.dense.weight"):  # ModernBERT
            config = self._folder.config()
            config.require("classifier_activation", "gelu")
            bias = self._bias("head.norm", hidden)
            norm = (checkpoint.take("head.norm.weight", (hidden,)), bias, config.number("norm_eps", 1e-5))
            return Classifier(self._dense("head.dense"), self._dense("classifier", 1), activation="gelu", norm=norm)
        dense = self._dense("pooler.dense")  # BERT
        return Classifier(dense, self._dense("classifier", 1), activation="tanh")

    def digest(self) -> str:
        """Of the files opened beside the checkpoint; empty without any."""
        return ":".join(file.digest() for file in self._files)

    def _dense(self, name: str, out: int | None = None) -> Linear:
        out = out or self._hidden
        return Linear(self._checkpoint.take(f"{name}.weight", (out, self._hidden)), self._bias(name, out))

    def _bias(self, name: str, out: int) -> torch.Tensor | None:
        has_bias = self._checkpoint.has(f"{name}.bias")
        return self._checkpoint.take(f"{name}.bias", (out,)) if has_bias else None

    def _open(self, folder: Path, file: str) -> Checkpoint:
        checkpoint = self._checkpoint
        self._files.append(
            Checkpoint(folder, prefixes=(), device=checkpoint.device, file=file, reads_headers=checkpoint.reads_headers)
        )
        return self._files[-1]
