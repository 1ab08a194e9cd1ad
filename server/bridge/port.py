"""What the rest of the server needs of an engine, wherever it runs."""

from typing import Protocol

from embedmux.server.errors import EmbedmuxError
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.records import OutputSpec


class EnginePort(Protocol):
    """The engine across the process border (Supervisor) or in this process (LocalEngine)."""

    @property
    def model(self) -> ModelInfo:
        """Facts of the loaded model."""

    @property
    def adapters(self) -> dict[str, AdapterInfo]:
        """Adapters in service by id; a new dict after every change."""

    async def embed(
        self, tokens: list[list[int]], adapters: list[int], output: OutputSpec, deadline: float | None
    ) -> tuple[bytes, dict[int, EmbedmuxError]]:
        """Vectors of tokenised texts row by row, and the errors of texts that have none."""

    async def load_adapter(self, path: str, adapter_id: str | None) -> AdapterInfo:
        """Loads an adapter folder below the root."""

    async def unload_adapter(self, adapter_id: str) -> None:
        """Takes an adapter out of service."""
