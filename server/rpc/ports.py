"""What rpc needs from the rest of the server; app.py hands it over."""

from typing import Protocol

from embedmux.server.errors import EmbedmuxError
from embedmux.server.facts import AdapterInfo, ServerInfo
from embedmux.server.requests import EmbedJob, EmbedResult, RerankJob, RerankResult, TokenizedText


class Encoder(Protocol):
    """Texts to vectors. A cancelled call is cancelled here too, so that queued work is dropped."""

    async def embed(self, job: EmbedJob) -> EmbedResult:
        """Vectors for all texts; what is wrong with one text stands in the result, all else raises EmbedmuxError."""
        ...

    async def tokenize(self, job: EmbedJob) -> list[TokenizedText | EmbedmuxError]:
        """One entry per text, in order."""
        ...


class Reranker(Protocol):
    """Documents to scores. A cancelled call is cancelled here too, so that queued work is dropped."""

    async def rerank(self, job: RerankJob) -> RerankResult:
        """A score for every document; what is wrong with one stands in the result, all else raises EmbedmuxError."""
        ...


class AdapterDesk(Protocol):
    """The adapters of a running server. ``model`` None is the first embedder; NotFound for one that is not served."""

    async def load(self, path: str, adapter_id: str | None, model: str | None, placement: str | None) -> AdapterInfo:
        """Loads a folder below the model's adapter root; ``adapter_id`` None takes the folder's name.

        ``placement`` is a value of records.Placement; None is the server's default.
        """
        ...

    async def unload(self, adapter_id: str, model: str | None) -> None:
        """Takes an adapter out of service."""
        ...

    def list(self, model: str | None) -> list[AdapterInfo]:
        """Every adapter that texts may use now, of one model or, for None, of all; each names its model."""
        ...


class Facts(Protocol):
    """What the server says of itself."""

    def describe(self) -> ServerInfo:
        """Version, state, models and limits as they are now."""
        ...


class CallObserver(Protocol):
    """Told of every call; metrics hang here. ``method`` is Service/Method, ``status`` a gRPC code's name."""

    def started(self, method: str) -> None:
        """A call came in."""
        ...

    def finished(self, method: str, status: str, seconds: float) -> None:
        """The call was answered or given up by its caller (CANCELLED)."""
        ...

    def refused(self, reason: str) -> None:
        """A call was refused before it reached its service; ``reason`` is that of Overloaded."""
        ...


class Unobserved:
    """A CallObserver that keeps nothing."""

    def started(self, method: str) -> None:
        """Keeps nothing."""

    def finished(self, method: str, status: str, seconds: float) -> None:
        """Keeps nothing."""

    def refused(self, reason: str) -> None:
        """Keeps nothing."""
