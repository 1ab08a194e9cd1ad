"""One object that says whether the server serves; app.py and the engine's supervisor set it, rpc follows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedmux.server.facts import ServerState

CLOSING = (ServerState.DRAINING, ServerState.STOPPED)


class Lifecycle:
    """The server's state; starts as STARTING. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self._state = ServerState.STARTING
        self._listeners: dict[object, Callable[[], None]] = {}

    @property
    def state(self) -> ServerState:
        """The state now."""
        return self._state

    @property
    def is_closing(self) -> bool:
        """Whether new work should go elsewhere for good."""
        return self._state in CLOSING

    def set(self, state: ServerState) -> None:
        """Changes the state and tells every listener.

        A server that drains stays so until it is stopped: an engine that comes back meanwhile must not reopen it.
        """
        if state is self._state or (self.is_closing and state is not ServerState.STOPPED):
            return
        self._state = state
        for listener in list(self._listeners.values()):
            listener()

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """Calls ``listener`` after each change while the block runs."""
        key = object()
        self._listeners[key] = listener
        try:
            yield
        finally:
            del self._listeners[key]
