"""gte-Qwen2 (1.5B, 7B): Qwen2 with biases, EOS pooled, and a direction of attention that only ``is_causal`` tells.

The published remote code of 1.5B computed causal attention at first whatever the config said; since May 2025 code and
config agree on ``"is_causal": false``, attention in both directions. A config without the key leaves it open.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from model_families.decoder_layout import (
    QWEN_SPECIAL,
    Shape,
    config_of,
    end_of,
    plan_of,
    write_last_token_modules,
    write_prompts,
    write_qwen_tokenizer,
)
from model_families.decoder_mutants import BIASES, DECODER, GROUPED, POOLED, PROMPTS, Mutant, no_post_processor, setting
from model_families.decoder_reference import SentenceReference
from model_families.family import Family, Size
from model_families.files import write_json
from model_families.tokenizers_bpe import byte_level
from model_families.weights import write_shards

SHAPE = Shape(
    hidden=1536, heads=12, kv_heads=2, inner=8960, vocabulary=151646, positions=131072, has_head_norms=False,
    has_biases=True,
)  # fmt: skip
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
TEMPLATE = "Instruct: {instruction}\nQuery: "


def build(folder: Path, size: Size, seed: int, *, is_causal: bool | None = False) -> None:
    """The repository; only tiny. ``is_causal`` None leaves the key out, as the first revisions had it."""
    if size == "full":
        raise ValueError("gte-Qwen2 has 1.5 billion parameters; there is no full size here")
    shape = SHAPE.sized(size, head_size=16)  # Qwen2's heads add up to the hidden size
    tokenizer = byte_level(QWEN_SPECIAL, ending="<|endoftext|>")
    folder.mkdir(parents=True)
    classes = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    kinds = ("Qwen2Model", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification")
    more = {
        "auto_map": {name: f"modeling_qwen.{kind}" for name, kind in zip(classes, kinds, strict=True)},
        "bos_token_id": end_of(tokenizer), "eos_token_id": end_of(tokenizer), "max_window_layers": 21,
        "sliding_window": shape.positions, "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False,
    }  # fmt: skip
    config = config_of(shape, "qwen2", "Qwen2ForCausalLM", **more)
    del config["head_dim"], config["attention_bias"]
    if is_causal is not None:
        config["is_causal"] = is_causal
    write_json(folder / "config.json", config)
    write_shards(folder, plan_of(shape), seed, torch.float32, shards=2, prefix="model.")
    write_qwen_tokenizer(folder, tokenizer)
    write_last_token_modules(folder, shape.hidden, 8192)
    write_prompts(folder, {"query": TEMPLATE.format(instruction=INSTRUCTION)}, None)


MUTANTS: dict[str, Mutant] = {
    **DECODER,
    **GROUPED,
    **BIASES,
    **PROMPTS,
    **POOLED,
    "causal": setting("config.json", is_causal=True),
    "dropped_eos": no_post_processor,
}
FAMILIES = (
    Family(
        name="gte-qwen2-1.5b-instruct",
        kind="embedder",
        build=partial(build),
        reference=partial(SentenceReference, template=TEMPLATE),
        mutants=MUTANTS,
        roles=("query", None),
        is_refused=True,
    ),
)
