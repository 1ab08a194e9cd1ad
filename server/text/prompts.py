"""The named prompts of a model: what its checkpoint's config_sentence_transformers.json says, else none."""

from dataclasses import dataclass, field
from pathlib import Path

from embedmux.server.backbones.spec import read_json
from embedmux.server.errors import ModelRejected

QUERY_NAMES = ("query",)
DOCUMENT_NAMES = ("document", "passage", "corpus")  # the order sentence-transformers' encode_document looks them up


@dataclass(frozen=True, slots=True)
class Prompts:
    """Literal prefixes by name, and the name used when a request gives neither prompt nor role."""

    by_name: dict[str, str] = field(default_factory=dict)
    default_name: str | None = None

    @property
    def pair(self) -> tuple[str, str]:
        """The prefixes of queries and of documents; empty where there is none."""
        return self._first(QUERY_NAMES), self._first(DOCUMENT_NAMES)

    def _first(self, names: tuple[str, ...]) -> str:
        return next((self.by_name[name] for name in names if name in self.by_name), "")


def read_prompts(folder: Path) -> Prompts:
    """The prompts of a model folder; raises ModelRejected when the file is there but does not hold prompts."""
    config = read_json(folder / "config_sentence_transformers.json", optional=True)
    prompts, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ModelRejected(
            f"model {folder.name!r}: prompts in config_sentence_transformers.json are not names to texts"
        )
    if default is not None and default not in prompts:
        raise ModelRejected(f"model {folder.name!r}: default_prompt_name {default!r} is not among {sorted(prompts)}")
    return Prompts(prompts, default)
