"""Qwen3-Embedding: bare names in one file, ``model.`` names in shards, and a head that is stored though unused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from model_families.decoder_layout import (
    Shape,
    end_of,
    plan_of,
    qwen_config,
    qwen_tokenizer,
    write_last_token_modules,
    write_prompts,
    write_qwen_tokenizer,
)
from model_families.decoder_mutants import POOLED, PROMPTS, QWEN3, no_post_processor
from model_families.decoder_reference import SentenceReference
from model_families.family import Family, Size
from model_families.files import write_json
from model_families.weights import linear, write_shards, write_weights

SHAPE = Shape(vocabulary=151669)
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
TEMPLATE = "Instruct: {instruction}\nQuery:"  # no space behind the colon


def build(folder: Path, size: Size, seed: int, *, prefix: str = "", shards: int = 1, has_head: bool = False) -> None:
    """The repository; ``has_head`` stores an ``lm_head.weight`` of its own, which an embedder ignores."""
    shape = SHAPE.sized(size)
    plan = plan_of(shape)
    folder.mkdir(parents=True)
    tokenizer = qwen_tokenizer(ending="<|endoftext|>")
    config = qwen_config(shape, "Qwen3ForCausalLM", end_of(tokenizer), tie_word_embeddings=not has_head)
    write_json(folder / "config.json", config)
    renamed = {prefix + name: draw for name, draw in plan.items()}
    if has_head:
        renamed["lm_head.weight"] = linear(shape.vocabulary, shape.hidden)
    if shards > 1:
        write_shards(folder, renamed, seed, torch.bfloat16, shards=shards)
    else:
        write_weights(folder / "model.safetensors", renamed, seed, torch.bfloat16)
    write_qwen_tokenizer(folder, tokenizer)
    write_last_token_modules(folder, shape.hidden)
    write_prompts(folder, {"query": TEMPLATE.format(instruction=INSTRUCTION), "document": ""}, None)


MUTANTS = {**QWEN3, **PROMPTS, **POOLED, "dropped_eos": no_post_processor}
VARIANTS = {
    "qwen3-embedding-0.6b": partial(build),
    "qwen3-embedding-4b": partial(build, prefix="model.", shards=2),
    "qwen3-embedding-8b": partial(build, prefix="model.", shards=3, has_head=True),
}
FAMILIES = tuple(
    Family(
        name=name,
        kind="embedder",
        build=builder,
        reference=partial(SentenceReference, template=TEMPLATE),
        mutants=MUTANTS,
        roles=("query", "document", None),
        has_full=name.endswith("0.6b"),
    )
    for name, builder in VARIANTS.items()
)
