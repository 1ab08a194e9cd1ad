"""What the rest of the server needs of an engine, wherever it runs; and one of its models as if it were alone."""

from __future__ import annotations

from typing import Protocol

from embedmux.server.errors import EmbedmuxError
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.records import OutputSpec, Terms, Tokens

Answer = tuple[bytes, dict[int, EmbedmuxError]]


class EnginePort(Protocol):
    """One model of an engine."""

    @property
    def model(self) -> ModelInfo:
        """Facts of the loaded model."""

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """Adapters in service by id; a new dict after every change."""

    def expect(self, num_characters: int, terms: Terms) -> None:
        """Raises Overloaded where texts of so many characters would be refused: a guess, before they are read."""

    async def embed(self, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms) -> Answer:
        """Rows of tokenised texts one after another (``OutputSpec``), and the errors of texts that have none."""

    async def load_adapter(self, path: str, adapter_id: str | None, placement: str | None = None) -> AdapterInfo:
        """Loads an adapter folder below the model's root; ``placement`` None is the engine's own."""

    async def unload_adapter(self, adapter_id: str) -> None:
        """Takes an adapter out of service."""


class Engines(Protocol):
    """All models of an engine, by their place: across the process border (Supervisor) or in this process."""

    @property
    def models(self) -> list[ModelInfo]:
        """Facts of the loaded models."""

    def adapters_of(self, model: int) -> dict[str, AdapterInfo]:
        """A model's adapters in service by id; a new dict after every change."""

    def expect(self, num_characters: int, terms: Terms) -> None:
        """See EnginePort."""

    async def embed(
        self, model: int, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms
    ) -> Answer:
        """See EnginePort."""

    async def load_adapter(
        self, model: int, path: str, adapter_id: str | None, placement: str | None = None
    ) -> AdapterInfo:
        """See EnginePort."""

    async def unload_adapter(self, model: int, adapter_id: str) -> None:
        """See EnginePort."""


class ModelPort:
    """An EnginePort onto one model."""

    def __init__(self, engines: Engines, place: int) -> None:
        self._engines = engines
        self._place = place

    @property
    def model(self) -> ModelInfo:
        """See EnginePort."""
        return self._engines.models[self._place]

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """See EnginePort."""
        return self._engines.adapters_of(self._place)

    def expect(self, num_characters: int, terms: Terms) -> None:
        """See EnginePort."""
        self._engines.expect(num_characters, terms)

    async def embed(self, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms) -> Answer:
        """See EnginePort."""
        return await self._engines.embed(self._place, tokens, adapters, output, terms)

    async def load_adapter(self, path: str, adapter_id: str | None, placement: str | None = None) -> AdapterInfo:
        """See EnginePort."""
        return await self._engines.load_adapter(self._place, path, adapter_id, placement)

    async def unload_adapter(self, adapter_id: str) -> None:
        """See EnginePort."""
        await self._engines.unload_adapter(self._place, adapter_id)
