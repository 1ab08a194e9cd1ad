"""The files that sentence-transformers puts beside a model that pools the first token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_families.files import edit_json, write_json


def write_sentence_transformers(
    folder: Path, *, hidden: int, max_tokens: int, prompts: dict[str, str] | None, **more: Any
) -> None:
    """The files of a sentence-transformers embedder that pools the first token and normalises."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (path, name) in enumerate(modules)
        ],
    )
    kinds = ("mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden, "pooling_mode_cls_token": True,
            **{f"pooling_mode_{kind}": False for kind in kinds},
            # False where the prompts that it would leave out are empty.
            "include_prompt": prompts is None or any(prompts.values()),
        },
    )  # fmt: skip
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})
    if prompts is not None:
        write_json(
            folder / "config_sentence_transformers.json",
            {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine", **more},
        )


def pool_mean(folder: Path) -> None:
    """The mean of all tokens in place of the first."""
    edit_json(
        folder / "1_Pooling" / "config.json",
        lambda values: values.update(pooling_mode_cls_token=False, pooling_mode_mean_tokens=True),
    )
