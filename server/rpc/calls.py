"""The edge of every call: its id, its deadline, the limit of calls, and errors -> status.

A servicer's method gets ``(request, call)`` and returns a message or raises EmbedmuxError.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from embedmux.server.config import MAX_TENANT_LENGTH
from embedmux.server.errors import EmbedmuxError, InvalidRequest, Overloaded
from embedmux.server.records import Notes, Priority, Terms
from embedmux.server.rpc import status
from embedmux.server.rpc.ports import CallObserver

REQUEST_ID = "x-request-id"
TENANT = "x-embedmux-tenant"
PRIORITY = "x-embedmux-priority"
TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
LOAD_FORMAT = "endpoint-load-metrics-format"
PUSHBACK = "grpc-retry-pushback-ms"  # gRPC clients with a retry policy obey it
MAX_ID_LENGTH = 128
OURS = {REQUEST_ID, TENANT, PRIORITY, TRACEPARENT, TRACESTATE, LOAD_FORMAT}
OK = grpc.StatusCode.OK
PRIORITIES = {priority.value: priority for priority in Priority}
RETRY_AFTER_S = 0.1

Method = Callable[[Any, "Call"], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """One call: ``id`` as the client gave it or made here, ``given`` what its metadata say to this server.

    ``began`` is in seconds of time.monotonic; ``notes`` are filled on the call's way, and are those of its terms.
    """

    id: str
    method: str
    terms: Terms
    context: Any  # grpc.aio.ServicerContext; streams read and write through it
    given: dict[str, str]
    began: float
    notes: Notes

    @property
    def tenant(self) -> str:
        """Who calls, for logs and traces; a name that is refused is shown as none."""
        tenant = self.terms.tenant
        return tenant if _is_usable(tenant, MAX_TENANT_LENGTH) else ""


class Watcher(Protocol):
    """Told of every call once it has ended, on the event loop; an access log, traces and load reports watch calls."""

    def ended(self, call: Call, status: grpc.StatusCode, now: float) -> None:
        """The call was answered or given up by its caller (CANCELLED), at ``now`` on time.monotonic."""
        ...


class Reports(Protocol):
    """Who adds to a call's trailing metadata; see orca.py."""

    def trailer(self, call: Call) -> tuple[tuple[str, bytes], ...]:
        """Keys and values, none where nothing is to be said."""
        ...


class Calls:
    """Guards the calls of some services; over ``max_calls`` at once it refuses."""

    def __init__(
        self,
        observer: CallObserver,
        *,
        max_calls: int,
        watchers: Sequence[Watcher] = (),
        reports: Reports | None = None,
    ) -> None:
        self._observer = observer
        self._max_calls = max_calls
        self._watchers = watchers
        self._reports = reports
        self._active = 0

    def guard(self, name: str, method: Method) -> Callable[[Any, Any], Awaitable[Any]]:
        """What gRPC runs in place of ``method``: the same, with every failure turned into a status."""
        observer = self._observer

        async def guarded(request: Any, context: Any) -> Any:
            began = time.monotonic()
            given = _given(context)
            call = _open(name, context, began, given)
            outcome = OK
            self._active += 1
            observer.started(name)
            try:
                self._check(given)
                if isinstance(request, InvalidRequest):
                    raise request
                reply = await method(request, call)
                if self._reports is not None and (said := self._reports.trailer(call)):
                    context.set_trailing_metadata(((REQUEST_ID, call.id), *said))
                return reply
            except (Exception, asyncio.CancelledError) as error:
                if is_caller_gone(error):
                    outcome = grpc.StatusCode.CANCELLED
                    raise
                refusal = status.refusal(error, method=name, call_id=call.id)
                outcome = status.status_of(refusal)
                said = () if self._reports is None else self._reports.trailer(call)
                await context.abort(outcome, status.message_of(refusal), (*_trailer(call.id, refusal), *said))
            finally:
                self._active -= 1
                now = time.monotonic()
                observer.finished(name, outcome.name, now - began)
                for watcher in self._watchers:
                    watcher.ended(call, outcome, now)

        return guarded

    def _check(self, given: dict[str, str]) -> None:
        if self._active > self._max_calls:
            self._observer.refused("calls")
            raise Overloaded(
                f"{self._active} calls are in flight, the limit is {self._max_calls} (max_calls); "
                f"try again in {RETRY_AFTER_S * 1000:.0f} ms",
                RETRY_AFTER_S,
                reason="calls",
            )
        for key, limit in ((REQUEST_ID, MAX_ID_LENGTH), (TENANT, MAX_TENANT_LENGTH)):
            if key in given and not _is_usable(given[key], limit):
                raise InvalidRequest(
                    f"metadata {key} has {len(given[key])} characters; it takes 1 to {limit} printable ASCII ones"
                )
        if given.get(PRIORITY, Priority.BULK.value) not in PRIORITIES:
            raise InvalidRequest(f"metadata {PRIORITY} is {given[PRIORITY]!r}; it takes {' or '.join(PRIORITIES)}")


def is_caller_gone(error: BaseException) -> bool:
    """Whether the call ended from outside: cancelled, or its connection broke under a read or a write.

    A CancelledError that nobody sent to this task comes from a future that something dropped. gRPC would leave such
    a call without an answer, so it counts as a failure of ours.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, grpc.aio.InternalError)


def _given(context: Any) -> dict[str, str]:
    """What the client says of this call in its metadata, as far as it is ours; of two values the first holds."""
    return {key: str(value) for key, value in reversed(context.invocation_metadata()) if key in OURS}


def _is_usable(given: str, limit: int) -> bool:
    return 0 < len(given) <= limit and given.isascii() and given.isprintable()


def _open(name: str, context: Any, now: float, given: dict[str, str]) -> Call:
    own = given.get(REQUEST_ID, "")
    call_id = own if _is_usable(own, MAX_ID_LENGTH) else secrets.token_hex(8)
    context.set_trailing_metadata(((REQUEST_ID, call_id),))
    remaining = context.time_remaining()
    deadline = None if remaining is None else now + remaining
    priority = PRIORITIES.get(given.get(PRIORITY, ""), Priority.INTERACTIVE)
    notes = Notes()
    return Call(call_id, name, Terms(deadline, given.get(TENANT, ""), priority, notes), context, given, now, notes)


def _trailer(call_id: str, refusal: EmbedmuxError) -> tuple[tuple[str, str], ...]:
    wait_ms = status.retry_after_ms(refusal)
    return ((REQUEST_ID, call_id),) if wait_ms is None else ((REQUEST_ID, call_id), (PUSHBACK, str(wait_ms)))
