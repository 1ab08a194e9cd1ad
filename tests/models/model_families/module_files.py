"""What sentence-transformers puts beside a model that pools, and what a mutant may change of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model_families.files import edit_json, write_json

MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def write_modules(
    folder: Path,
    *,
    hidden: int,
    mode: str,
    max_tokens: int,
    dense: Sequence[str] = (),
    first: tuple[str, str] = ("0", "sentence_transformers.models.Transformer"),
) -> None:
    """modules.json, 1_Pooling/config.json and sentence_bert_config.json: transformer, pooling, ``dense``, normalize.

    ``mode`` is one of ``MODES``; ``first`` is the name and the type of the transformer's entry.
    """
    models = "sentence_transformers.models"
    rows: list[tuple[str, str, str]] = [(first[0], "", first[1]), ("1", "1_Pooling", f"{models}.Pooling")]
    rows += [(path[0], path, f"{models}.Dense") for path in dense]
    rows.append((str(len(rows)), f"{len(rows)}_Normalize", f"{models}.Normalize"))
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": name, "path": path, "type": kind} for i, (name, path, kind) in enumerate(rows)],
    )
    flags = {f"pooling_mode_{name}": name == mode for name in MODES}
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **flags, "include_prompt": True}
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens, "do_lower_case": False})


def write_prompts(folder: Path, prompts: dict[str, str], **more: Any) -> None:
    """config_sentence_transformers.json."""
    write_json(
        folder / "config_sentence_transformers.json",
        {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine", **more},
    )


def pool_otherwise(mode: str) -> Callable[[Path], None]:
    """A mutant: the folder pools with another of ``MODES``."""

    def edit(values: dict[str, Any]) -> None:
        values.update({f"pooling_mode_{name}": name == mode for name in MODES})

    return lambda folder: edit_json(folder / "1_Pooling" / "config.json", edit)


def edit_config(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A mutant that changes config.json in place."""
    return lambda folder: edit_json(folder / "config.json", edit)


def drop_token(place: int) -> Callable[[Path], None]:
    """A mutant: the post-processor forgets the special token before (0) or behind (-1) a text."""

    def edit(values: dict[str, Any]) -> None:
        del values["post_processor"]["single"][place]

    return lambda folder: edit_json(folder / "tokenizer.json", edit)
