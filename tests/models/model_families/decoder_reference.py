"""Decoder embedders by the published libraries, one text at a time in float32 with eager attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer

from model_families.family import Role, Vectors
from model_families.files import read_json

HEADS = frozenset({"lm_head.weight"})  # stored by some repositories, no part of an embedder


def open_model(folder: Path, kind: type[Any], model_type: str | None = None, *, heads: frozenset[str] = HEADS) -> Any:
    """A model of transformers with every tensor of the folder in its place but those of ``heads``.

    ``model_type`` overrides the config's.
    """
    config = {**read_json(folder / "config.json"), **({"model_type": model_type} if model_type else {})}
    config.pop("auto_map", None)
    model, report = kind.from_pretrained(
        folder,
        config=kind.config_class.from_dict(config),
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not report["missing_keys"], report
    assert not set(report["unexpected_keys"]) - heads, report
    return model.eval()


class DecoderReference:
    """The last token's state behind the final norm, normalised. Prompts come from the folder.

    ``model`` is from ``open_model``, ``suffix`` stands behind every text, ``template`` is a format of {instruction}.
    """

    def __init__(self, folder: Path, model: Any, *, suffix: str = "", template: str | None = None) -> None:
        settings = folder / "config_sentence_transformers.json"
        self.settings = read_json(settings) if settings.exists() else {}
        self.folder, self.model, self.suffix, self.template = folder, model, suffix, template
        # Not AutoTokenizer, which would ask for the remote code that some configs name.
        self.tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)

    def prompt(self, role: Role | None, instruction: str | None = None) -> str:
        """What stands in front of a text."""
        if instruction is not None:
            assert self.template is not None
            return self.template.format(instruction=instruction)
        prompts = self.settings.get("prompts", {})
        name = role or self.settings.get("default_prompt_name")
        return str(prompts.get(name, "")) if name else ""

    def token_ids(
        self, text: str, *, task: str | None = None, role: Role | None = None, instruction: str | None = None
    ) -> list[int]:
        """Prompt, text and suffix in one go, with the post-processor's tokens."""
        return list(self.tokenizer(self.prompt(role, instruction) + text + self.suffix)["input_ids"])

    def states(self, ids: list[int]) -> torch.Tensor:
        """[tokens, hidden] behind the final norm."""
        with torch.inference_mode():
            return self.model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """[hidden]; the folder's 1_Pooling says which token, the last one where it has none."""
        settings = self.folder / "1_Pooling" / "config.json"
        mode = read_json(settings) if settings.exists() else {"pooling_mode_lasttoken": True}
        if mode.get("pooling_mode_mean_tokens"):
            return states.mean(0)
        return states[-1 if mode["pooling_mode_lasttoken"] else 0]

    def embed(
        self, texts: list[str], *, task: str | None = None, role: Role | None = None, instruction: str | None = None
    ) -> Vectors:
        """[n, hidden] float32, normalised."""
        ids = [self.token_ids(text, task=task, role=role, instruction=instruction) for text in texts]
        pooled = torch.stack([self.pool(self.states(sequence)) for sequence in ids])
        return torch.nn.functional.normalize(pooled, dim=-1).numpy()

    def attentions(self, text: str) -> list[Vectors]:
        """[heads, tokens, tokens] of every layer, to see whether they are peaked."""
        ids = torch.tensor([self.token_ids(text, role="query")])
        with torch.inference_mode():
            found = self.model(input_ids=ids, use_cache=False, output_attentions=True).attentions
        return [layer[0].numpy() for layer in found]


class SentenceReference:
    """What sentence-transformers makes of a folder by itself: its prompts, its pooling, its normalisation."""

    def __init__(self, folder: Path, *, template: str | None = None) -> None:
        options = {"attn_implementation": "eager", "dtype": torch.float32}
        self.model = SentenceTransformer(str(folder), device="cpu", model_kwargs=options)
        self.template = template

    def prompt(self, role: Role | None, instruction: str | None = None) -> str:
        """What stands in front of a text."""
        if instruction is not None:
            assert self.template is not None
            return self.template.format(instruction=instruction)
        name = role or self.model.default_prompt_name
        return self.model.prompts.get(name) or "" if name else ""

    def token_ids(
        self, text: str, *, task: str | None = None, role: Role | None = None, instruction: str | None = None
    ) -> list[int]:
        """Prompt and text in one go, with the post-processor's tokens."""
        return list(self.model.tokenizer(self.prompt(role, instruction) + text)["input_ids"])

    def embed(
        self, texts: list[str], *, task: str | None = None, role: Role | None = None, instruction: str | None = None
    ) -> Vectors:
        """[n, hidden] float32, normalised."""
        prompt = self.prompt(role, instruction)
        rows = [self.model.encode(text, prompt=prompt, show_progress_bar=False) for text in texts]
        return np.stack(rows)

    def attentions(self, text: str) -> list[Vectors]:
        """[heads, tokens, tokens] of every layer, to see whether they are peaked."""
        ids = torch.tensor([self.token_ids(text, role="query")])
        with torch.inference_mode():
            found = self.model[0].model(input_ids=ids, use_cache=False, output_attentions=True).attentions
        return [layer[0].numpy() for layer in found]
