"""Weights of BERT and XLM-RoBERTa encoders and of the heads that are published on top of them.

Names as transformers writes them. The word, position and type vectors are small, as wide as the square root of a
LayerNorm epsilon of 1e-5, so that a wrong epsilon is seen. The other gains keep the vectors of different texts apart:
more of a mean over tokens, or of GELU's positive mean, and all texts look alike after a few layers.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from model_families.weights import NAMES, Draw, Plan, linear, scale, shift

# Gain of queries and keys: scores have a standard deviation of 4. Larger ones would make 24 layers in bfloat16 a test
# of rounding; with these, transformers' own bfloat16 stays above a cosine of 0.9994 at that depth.
PEAK = 2.0


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder. ``vocab`` 0 stands for as many rows as the built tokenizer has ids."""

    layers: int
    hidden: int
    heads: int
    inner: int
    positions: int
    types: int
    vocab: int = 0


def encoder_plan(shape: EncoderShape, *, prefix: str = "", has_pooler: bool = True) -> Plan:
    """Every tensor of BertModel or XLMRobertaModel, with ``prefix`` before the names."""
    hidden = shape.hidden
    plan: Plan = {
        "embeddings.word_embeddings.weight": Draw((shape.vocab, hidden), 2.5e-3),
        "embeddings.position_embeddings.weight": Draw((shape.positions, hidden), 2e-3),
        "embeddings.token_type_embeddings.weight": Draw((shape.types, hidden), 1.5e-3),
        "embeddings.LayerNorm.weight": scale(hidden),
        "embeddings.LayerNorm.bias": shift(hidden),
    }
    for layer in range(shape.layers):
        plan |= {f"encoder.layer.{layer}.{name}": drawn for name, drawn in _layer_plan(shape).items()}
    if has_pooler:
        plan |= {"pooler.dense.weight": linear(hidden, hidden), "pooler.dense.bias": shift(hidden)}
    return {prefix + name: drawn for name, drawn in plan.items()}


def _layer_plan(shape: EncoderShape) -> Plan:
    hidden, inner = shape.hidden, shape.inner
    return {
        "attention.self.query.weight": linear(hidden, hidden, PEAK),
        "attention.self.query.bias": shift(hidden),
        "attention.self.key.weight": linear(hidden, hidden, PEAK),
        "attention.self.key.bias": shift(hidden),
        "attention.self.value.weight": linear(hidden, hidden, 1.2),
        "attention.self.value.bias": shift(hidden, 0.1),
        "attention.output.dense.weight": linear(hidden, hidden),
        "attention.output.dense.bias": shift(hidden, 0.05),
        "attention.output.LayerNorm.weight": scale(hidden),
        "attention.output.LayerNorm.bias": shift(hidden, 0.1),
        "intermediate.dense.weight": linear(inner, hidden),
        "intermediate.dense.bias": shift(inner),
        "output.dense.weight": linear(hidden, inner, 0.6),
        "output.dense.bias": shift(hidden, 0.05),
        "output.LayerNorm.weight": scale(hidden),
        "output.LayerNorm.bias": shift(hidden, 0.1),
    }


def bert_classifier_plan(shape: EncoderShape) -> Plan:
    """BertForSequenceClassification with one label: the pooler's tanh, then one linear."""
    classifier = {"classifier.weight": linear(1, shape.hidden, 4.0), "classifier.bias": Draw((1,), 0.1, 1.0)}
    return encoder_plan(shape, prefix="bert.") | classifier


def roberta_classifier_plan(shape: EncoderShape) -> Plan:
    """XLMRobertaForSequenceClassification with one label: no pooler, but a dense with tanh and a projection."""
    hidden = shape.hidden
    classifier = {
        "classifier.dense.weight": linear(hidden, hidden),
        "classifier.dense.bias": shift(hidden),
        "classifier.out_proj.weight": linear(1, hidden, 4.0),
        "classifier.out_proj.bias": Draw((1,), 0.1, 1.0),
    }
    return encoder_plan(shape, prefix="roberta.", has_pooler=False) | classifier


def append_tensor(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Adds one tensor behind the others of a safetensors file, whatever its dtype; the file is copied, not loaded."""
    renewed = path.with_suffix(".new")
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    with path.open("rb") as source, renewed.open("wb") as target:
        header = json.loads(source.read(struct.unpack("<Q", source.read(8))[0]))
        end = max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        offsets = [end, end + len(data)]
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        target.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(source, target, 1 << 24)
        target.write(data)
    os.replace(renewed, path)


def position_ids(shape: EncoderShape) -> torch.Tensor:
    """The buffer [1, positions] int64 that transformers stored with the weights before 4.31."""
    return torch.arange(shape.positions).unsqueeze(0)
