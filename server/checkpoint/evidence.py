"""Everything a model folder says of itself, gathered once: what families are recognised by."""

from __future__ import annotations

from dataclasses import dataclass

from embedmux.server.checkpoint.architectures import read_model_type
from embedmux.server.checkpoint.folder import Config, ModelFolder
from embedmux.server.checkpoint.modules import Modules, read_modules
from embedmux.server.checkpoint.names import Hint, read_hints
from embedmux.server.checkpoint.tokens import TokenIds
from embedmux.server.contract import Prompts


@dataclass(frozen=True, slots=True)
class Evidence:
    """config.json and what lies beside it. ``prompts`` are the checkpoint's own, empty where it has none."""

    folder: ModelFolder
    config: Config
    model_type: str
    settings: Config  # config_sentence_transformers.json
    sentences: Config  # sentence_bert_config.json
    tokenizer: Config  # tokenizer_config.json
    modules: Modules
    prompts: Prompts
    hints: tuple[Hint, ...]
    tokens: TokenIds

    def is_class(self, *endings: str) -> bool:
        """Whether config.json names a class of the architecture that ends so."""
        return any(name.endswith(endings) for name in self.config.strings("architectures", []))


def gather(folder: ModelFolder) -> Evidence:
    """Reads the JSON of a folder; raises ModelRejected for what is missing or malformed."""
    config = folder.config()
    if not folder.has("tokenizer.json"):
        folder.reject("tokenizer.json is missing; save its fast tokenizer beside the weights")
    settings = folder.config("config_sentence_transformers.json", optional=True)
    return Evidence(
        folder,
        config,
        read_model_type(config),
        settings,
        folder.config("sentence_bert_config.json", optional=True),
        folder.config("tokenizer_config.json", optional=True),
        read_modules(folder),
        _prompts(settings),
        read_hints(folder, config),
        TokenIds(folder),
    )


def _prompts(settings: Config) -> Prompts:
    prompts = settings.section("prompts").values
    if not all(isinstance(text, str) for text in prompts.values()):
        settings.reject("prompts", "names to texts")
    default = settings.string("default_prompt_name", "") or None
    if default is not None and default not in prompts:
        settings.reject("default_prompt_name", f"one of {sorted(prompts)}")
    return Prompts(dict(prompts), default)
