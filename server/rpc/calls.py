"""The edge of every call: its id, its deadline, the limit of calls, and errors -> status.

A servicer's method gets ``(request, call)`` and returns a message or raises EmbedmuxError.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from embedmux.server.errors import EmbedmuxError, InvalidRequest, Overloaded
from embedmux.server.rpc import status
from embedmux.server.rpc.ports import CallObserver

REQUEST_ID = "x-request-id"
PUSHBACK = "grpc-retry-pushback-ms"  # gRPC clients with a retry policy obey it
MAX_ID_LENGTH = 128
RETRY_AFTER_S = 0.1

Method = Callable[[Any, "Call"], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call: ``id`` as the client gave it or made here, ``deadline`` on time.monotonic's clock, in seconds."""

    id: str
    method: str
    deadline: float | None
    context: Any  # grpc.aio.ServicerContext; streams read and write through it


class Calls:
    """Guards the calls of some services; over ``max_calls`` at once it refuses."""

    def __init__(self, observer: CallObserver, *, max_calls: int) -> None:
        self._observer = observer
        self._max_calls = max_calls
        self._active = 0

    def guard(self, name: str, method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
        """What gRPC runs in place of ``method``: the same, with every failure turned into a status."""
        observer = self._observer

        async def guarded(request: Any, context: Any) -> Any:
            began = time.monotonic()
            given = _given_id(context)
            call = _open(name, context, began, given)
            outcome = grpc.StatusCode.OK
            self._active += 1
            observer.started(name)
            try:
                self._check(given)
                if isinstance(request, InvalidRequest):
                    raise request
                return await method(request, call)
            except (Exception, asyncio.CancelledError) as error:
                if is_caller_gone(error):
                    outcome = grpc.StatusCode.CANCELLED
                    raise
                refusal = status.refusal(error, method=name, call_id=call.id)
                outcome = status.status_of(refusal)
                await context.abort(outcome, status.message_of(refusal), _trailer(call.id, refusal))
            finally:
                self._active -= 1
                observer.finished(name, outcome.name, time.monotonic() - began)

        return guarded

    def _check(self, given: str) -> None:
        if self._active > self._max_calls:
            raise Overloaded(
                f"{self._active} calls are in flight, the limit is {self._max_calls} (max_calls); "
                f"try again in {RETRY_AFTER_S * 1000:.0f} ms",
                RETRY_AFTER_S,
            )
        if given and not _is_usable_id(given):
            raise InvalidRequest(
                f"metadata {REQUEST_ID} has {len(given)} characters; it takes 1 to {MAX_ID_LENGTH} printable ASCII ones"
            )


def is_caller_gone(error: BaseException) -> bool:
    """Whether the call ended from outside: cancelled, or its connection broke under a read or a write.

    A CancelledError that nobody sent to this task comes from a future that something dropped. gRPC would leave such
    a call without an answer, so it counts as a failure of ours.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, grpc.aio.InternalError)


def _given_id(context: Any) -> str:
    for key, value in context.invocation_metadata():
        if key == REQUEST_ID:
            return str(value)
    return ""


def _is_usable_id(given: str) -> bool:
    return 0 < len(given) <= MAX_ID_LENGTH and given.isascii() and given.isprintable()


def _open(name: str, context: Any, now: float, given: str) -> Call:
    call_id = given if _is_usable_id(given) else secrets.token_hex(8)
    context.set_trailing_metadata(((REQUEST_ID, call_id),))
    remaining = context.time_remaining()
    return Call(call_id, name, None if remaining is None else now + remaining, context)


def _trailer(call_id: str, refusal: EmbedmuxError) -> tuple[tuple[str, str], ...]:
    wait_ms = status.retry_after_ms(refusal)
    return ((REQUEST_ID, call_id),) if wait_ms is None else ((REQUEST_ID, call_id), (PUSHBACK, str(wait_ms)))
