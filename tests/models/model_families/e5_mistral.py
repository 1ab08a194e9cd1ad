"""e5-mistral-7b-instruct: ``<s>`` before and ``</s>`` behind every text, though tokenizer.json adds only the first.

tokenizer_config.json has ``add_eos_token``, which transformers 5 no longer follows; the model was trained with it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from model_families.decoder_layout import Shape, config_of, plan_of, write_last_token_modules, write_prompts
from model_families.decoder_mutants import (
    DECODER,
    DIRECTED,
    GROUPED,
    POOLED,
    PROMPTS,
    Mutant,
    no_post_processor,
    setting,
)
from model_families.decoder_reference import DecoderReference, open_model
from model_families.family import Family, Role, Size
from model_families.files import read_json, write_json, write_tokenizer
from model_families.tokenizers_bpe import sentence_pieces
from model_families.weights import write_shards

SHAPE = Shape(
    layers=32, hidden=4096, heads=32, kv_heads=8, inner=14336, vocabulary=32000, positions=32768, theta=1e4, eps=1e-5,
    has_head_norms=False,
)  # fmt: skip
TEMPLATE = "Instruct: {instruction}\nQuery: "  # with a space behind the colon
INSTRUCTIONS = {
    "web_search_query": "Given a web search query, retrieve relevant passages that answer the query",
    "sts_query": "Retrieve semantically similar text.",
    "summarization_query": "Given a news summary, retrieve other semantically similar summaries",
    "bitext_query": "Retrieve parallel sentences.",
}
TINY_WINDOW = 24


def build(folder: Path, size: Size, seed: int) -> None:
    """The repository, whose prompts have names of their own; only tiny, with a window that texts outgrow."""
    if size == "full":
        raise ValueError("e5-mistral-7b-instruct has 7 billion parameters; there is no full size here")
    shape = SHAPE.sized(size, vocabulary=1024)
    folder.mkdir(parents=True)
    more = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "sliding_window": TINY_WINDOW}
    config = config_of(shape, "mistral", "MistralModel", tie_word_embeddings=False, use_cache=False, **more)
    del config["head_dim"], config["attention_bias"]
    write_json(folder / "config.json", {**config, "head_dim": shape.head_size, "torch_dtype": "float16"})
    write_shards(folder, plan_of(shape), seed, torch.float16, shards=2)
    settings = {
        "add_eos_token": True, "bos_token": "<s>", "clean_up_tokenization_spaces": False, "eos_token": "</s>",
        "legacy": True, "model_max_length": 10**30, "pad_token": "</s>", "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "use_default_system_prompt": True,
    }  # fmt: skip
    write_tokenizer(folder, sentence_pieces(), settings, "bos_token", "eos_token", "pad_token", "unk_token")
    write_last_token_modules(folder, shape.hidden, 4096)
    prompts = {name: TEMPLATE.format(instruction=instruction) for name, instruction in INSTRUCTIONS.items()}
    write_prompts(folder, prompts, None)


class MistralReference(DecoderReference):
    """Mistral with both special tokens in their places."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, open_model(folder, transformers.MistralModel), template=TEMPLATE)
        self.adds_end = read_json(folder / "tokenizer_config.json").get("add_eos_token", False)

    def prompt(self, role: Role | None, instruction: str | None = None) -> str:
        """A query has the prompt for web search, a document none."""
        if instruction is None and role == "query":
            return str(self.settings["prompts"]["web_search_query"])
        return super().prompt(None, instruction)

    def token_ids(
        self, text: str, *, task: str | None = None, role: Role | None = None, instruction: str | None = None
    ) -> list[int]:
        """``<s>``, prompt and text, ``</s>``."""
        ids = super().token_ids(text, role=role, instruction=instruction)
        return [*ids, 2] if self.adds_end else ids


MUTANTS: dict[str, Mutant] = {
    **DECODER,
    **GROUPED,
    **POOLED,
    **PROMPTS,
    **DIRECTED,
    "window_minus_one": setting("config.json", sliding_window=TINY_WINDOW - 1),
    "window_plus_one": setting("config.json", sliding_window=TINY_WINDOW + 1),
    "no_window": setting("config.json", sliding_window=None),
    "dropped_eos": setting("tokenizer_config.json", add_eos_token=False),
    "dropped_bos": no_post_processor,
}
FAMILIES = (
    Family(
        name="e5-mistral-7b-instruct",
        kind="embedder",
        build=build,
        reference=MistralReference,
        mutants=MUTANTS,
        roles=("query", "document", None),
    ),
)
