"""zEmbed-1: Qwen3 under ChatML frames, the newline behind the frame pooled, smaller sizes by chained matrices.

The names in projections.safetensors are the sizes themselves, ``"1280": [2560, 1280]`` down to ``"40": [80, 40]``, each
multiplied from the right onto the vector of the size before. This follows from the published file: its header has 456
bytes, which these names and shapes give exactly, and readers of it describe the same.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

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
from model_families.decoder_mutants import PROMPTS, QWEN3, Mutant, setting
from model_families.decoder_reference import DecoderReference, open_model
from model_families.family import Family, Size, Vectors
from model_families.files import write_json
from model_families.weights import Draw, Plan, write_weights

SHAPE = Shape(layers=36, hidden=2560, heads=32, inner=9728)
FRAMES = {role: f"<|im_start|>system\n{role}<|im_end|>\n<|im_start|>user\n" for role in ("query", "document")}
SUFFIX = "<|im_end|>\n"
STEPS = 6  # halvings


def sizes_of(hidden: int) -> list[int]:
    """The full size and its halves: 2560 to 40."""
    return [hidden >> step for step in range(STEPS + 1)]


def projection_plan(hidden: int) -> Plan:
    """The chained matrices, [from, to], by the size they lead to."""
    return {str(to): Draw((size, to), size**-0.5) for size, to in itertools.pairwise(sizes_of(hidden))}


def build(folder: Path, size: Size, seed: int) -> None:
    """The repository; only tiny, whose six halvings go from 128 to 2."""
    if size == "full":
        raise ValueError("zembed-1 has 4 billion parameters; there is no full size here")
    shape = SHAPE.sized(size, hidden=128)
    folder.mkdir(parents=True)
    tokenizer = qwen_tokenizer()
    write_json(folder / "config.json", qwen_config(shape, "Qwen3ForCausalLM", end_of(tokenizer)))
    write_weights(folder / "model.safetensors", plan_of(shape), seed, torch.bfloat16, prefix="model.")
    plan = projection_plan(shape.hidden)
    write_weights(folder / "projections.safetensors", plan, seed, torch.float32, metadata=False)
    write_qwen_tokenizer(folder, tokenizer)
    write_last_token_modules(folder, shape.hidden, shape.positions, type="modeling_zembed.ZembedTransformer")
    write_prompts(folder, FRAMES, "document", suffix=SUFFIX)


class ZembedReference(DecoderReference):
    """The frame, the text and the suffix as one literal string, as the remote module renders them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, open_model(folder, transformers.Qwen3Model))
        self.suffix = self.settings["suffix"]
        self.projections = load_file(folder / "projections.safetensors")

    def shorten(self, vectors: Vectors, size: int) -> Vectors:
        """[n, size], normalised: the chain of matrices down to ``size``."""
        found = torch.from_numpy(vectors).double()
        while found.shape[1] > size:
            found = found @ self.projections[str(found.shape[1] // 2)].double()
        assert found.shape[1] == size
        return torch.nn.functional.normalize(found, dim=-1).numpy()


def _exchange_frames(folder: Path) -> None:
    write_prompts(folder, {"query": FRAMES["document"], "document": FRAMES["query"]}, "document", suffix=SUFFIX)


MUTANTS: dict[str, Mutant] = {
    **QWEN3,
    **PROMPTS,
    "dropped_suffix": setting("config_sentence_transformers.json", suffix=""),
    "dropped_newline": setting("config_sentence_transformers.json", suffix="<|im_end|>"),
    "frames_exchanged": _exchange_frames,
}
FAMILIES = (
    Family(
        name="zembed-1",
        kind="embedder",
        build=build,
        reference=ZembedReference,
        mutants=MUTANTS,
        roles=("query", "document", None),
    ),
)
