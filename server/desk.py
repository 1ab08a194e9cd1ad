"""The served models as the services see them: their adapters, and what the server says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from embedmux.server.bridge.port import Engines, ModelPort
from embedmux.server.catalog import Catalog
from embedmux.server.checkpoint.read import read_contract
from embedmux.server.config import Limits, ServeConfig
from embedmux.server.contract import Contract
from embedmux.server.encode import Encoder
from embedmux.server.errors import InvalidRequest, NotFound
from embedmux.server.facts import AdapterInfo, ServedModel
from embedmux.server.metrics.ports import TextObserver, UnobservedTexts
from embedmux.server.models import find_model
from embedmux.server.rerank import Reranker
from embedmux.server.several import Models
from embedmux.server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Served:
    """One model's parts in the front."""

    name: str
    port: ModelPort
    contract: Contract
    catalog: Catalog
    tokenizer: Tokenizer

    @property
    def is_reranker(self) -> bool:
        """Whether it scores and makes no vectors."""
        return self.contract.score is not None

    def encoder(self, limits: Limits, observer: TextObserver | None = None) -> Encoder:
        """The conductor of its Embed requests."""
        return Encoder(self.catalog, self.tokenizer, self.port, limits, observer)

    def reranker(self, limits: Limits, observer: TextObserver | None = None) -> Reranker:
        """The conductor of its Rerank requests."""
        return Reranker(self.contract, self.tokenizer, self.port, limits, observer)


def open_models(config: ServeConfig, engines: Engines) -> list[Served]:
    """The front's side of every model: contract, tokenizer, catalogue. Raises ModelRejected."""
    found = []
    for place, model in enumerate(config.engine.models):
        folder: Path = find_model(model.source)
        contract, port = read_contract(folder), ModelPort(engines, place)
        tokenizer = Tokenizer(folder, contract, num_threads=config.tokenizer_threads)
        found.append(Served(model.name, port, contract, Catalog(port, contract), tokenizer))
    return found


def conduct(
    served: list[Served], limits: Limits, observer_of: Callable[[str], TextObserver] = lambda _: UnobservedTexts()
) -> Models:
    """Who answers what; rerankers proper stand before embedders with token vectors.

    ``observer_of`` is asked for each model's observer by its name.
    """
    rerankers = [model for model in served if model.is_reranker]
    embedders = [model for model in served if not model.is_reranker]
    late = [model for model in embedders if model.contract.late is not None]
    return Models(
        {model.name: model.encoder(limits, observer_of(model.name)) for model in embedders},
        {model.name: model.reranker(limits, observer_of(model.name)) for model in rerankers + late},
    )


class Desk:
    """The adapters of the running server, and its models."""

    def __init__(self, served: list[Served]) -> None:
        self._served = served

    async def load(
        self, path: str, adapter_id: str | None, model: str | None, placement: str | None = None
    ) -> AdapterInfo:
        """Loads a folder below a model's adapter root."""
        found = self._find(model)
        return replace(await found.port.load_adapter(path, adapter_id, placement), model=found.name)

    async def unload(self, adapter_id: str, model: str | None) -> None:
        """Takes an adapter out of service."""
        await self._find(model).port.unload_adapter(adapter_id)

    def list(self, model: str | None) -> list[AdapterInfo]:
        """Every adapter in service, of one model or of all."""
        chosen = self._served if model is None else [self._find(model)]
        return [replace(info, model=each.name) for each in chosen for info in each.port.adapters.values()]

    def models(self) -> tuple[ServedModel, ...]:
        """Every model with its tasks; the engine must be ready."""
        return tuple(
            ServedModel(each.port.model, (), {})  # no vectors, hence no spaces and no prompts to name
            if each.is_reranker
            else ServedModel(each.port.model, tuple(each.catalog.tasks()), each.contract.prompts.by_name)
            for each in self._served
        )

    def _find(self, name: str | None) -> Served:
        """The model of that name; None is the first one that takes adapters."""
        embedders = [model for model in self._served if not model.is_reranker]
        found = next(
            (model for model in (embedders if name is None else self._served) if name in (None, model.name)), None
        )
        if found is None:
            names = ", ".join(model.name for model in self._served)
            raise NotFound(f"model {name or 'that takes adapters'!r} is not served here; this server has: {names}")
        if found.is_reranker:
            raise InvalidRequest(f"model {found.name!r} is a reranker and takes no adapters; name an embedder")
        return found
