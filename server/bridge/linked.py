"""The engine as one front sees it, across restarts of its process. Runs on the event loop; never imports torch."""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import tempfile
from typing import Any

from embedmux.server.bridge.board import Board
from embedmux.server.bridge.gate import Gate
from embedmux.server.bridge.link import EngineLink, adapter_info
from embedmux.server.bridge.port import Answer
from embedmux.server.errors import Unavailable
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.records import OutputSpec, Terms, Tokens

CHARACTERS_A_TOKEN = 4  # about, before a text is read


class Linked:
    """Engines over the link of now; whoever connects puts it in (``link``)."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.link: EngineLink | None = None
        self._gate = Gate(board)

    async def connect(self, connection: socket.socket, memory: mmap.mmap) -> EngineLink:
        """A link over a socket on which an engine says READY, once it has; raises the error it says instead."""
        _, link = await asyncio.get_running_loop().create_connection(lambda: EngineLink(memory), sock=connection)
        await asyncio.shield(link.ready)
        return link

    @property
    def models(self) -> list[ModelInfo]:
        """Facts of the loaded models."""
        return self.ready_link().models

    @property
    def snapshot(self) -> dict[str, Any]:
        """What the engine counted, as it said last; empty before that (Runtime.snapshot)."""
        return {} if self.link is None else self.link.snapshot

    def adapters_of(self, model: int) -> dict[str, AdapterInfo]:
        """A model's adapters in service by id; a new dict after every change."""
        return self.ready_link().adapters[model]

    def expect(self, num_characters: int, terms: Terms) -> None:
        """See EnginePort."""
        self.ready_link()
        self._gate.check(num_characters // CHARACTERS_A_TOKEN + 1, terms)

    async def embed(
        self, model: int, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms
    ) -> Answer:
        """See EngineLink.embed."""
        return await self.ready_link().embed(model, tokens, adapters, output, terms)

    async def load_adapter(
        self, model: int, path: str, adapter_id: str | None, placement: str | None = None
    ) -> AdapterInfo:
        """Loads an adapter folder below a model's root; it stays loaded over restarts of the engine process."""
        wanted = {"model": model, "path": path, "adapter_id": adapter_id, "placement": placement}
        return adapter_info(await self.ready_link().call("load_adapter", **wanted))

    async def unload_adapter(self, model: int, adapter_id: str) -> None:
        """Takes an adapter out of service."""
        await self.ready_link().call("unload_adapter", model=model, adapter_id=adapter_id)

    def ready_link(self) -> EngineLink:
        """The link of now; raises Unavailable while there is none."""
        if self.link is None:
            raise Unavailable("the models are being loaded; try again")
        if self.link.lost.done():
            raise Unavailable("the engine process is being restarted; try again")
        return self.link


def memory_file(size: int) -> int:
    """A file descriptor of anonymous memory; pages are taken only when they are used."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("embedmux")
    else:  # no memfd on this system: an unlinked file does the same
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
