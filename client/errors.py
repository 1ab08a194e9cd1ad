"""What a gRPC status means to the caller: the server's exception tree, rebuilt from codes and messages.

    INVALID_ARGUMENT     InvalidRequest        CANCELLED     Cancelled
    NOT_FOUND            NotFound              UNAVAILABLE   Unavailable
    FAILED_PRECONDITION  AdapterRejected       INTERNAL      EngineFailure
    ALREADY_EXISTS       AdapterConflict       every other   UnexpectedReply
    RESOURCE_EXHAUSTED   Overloaded
    DEADLINE_EXCEEDED    DeadlineExceeded

Three places carry a status: the call itself, a failed request on a stream, and a failed text of a reply.
"""

import grpc

from embedmux.proto import types_pb2
from embedmux.server.errors import (
    AdapterConflict,
    AdapterRejected,
    Cancelled,
    DeadlineExceeded,
    EmbedmuxError,
    EngineFailure,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)

CLASSES: dict[grpc.StatusCode, type[EmbedmuxError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: AdapterRejected,
    grpc.StatusCode.ALREADY_EXISTS: AdapterConflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.INTERNAL: EngineFailure,
}
CODES = {code.value[0]: code for code in grpc.StatusCode}

PUSH_BACK = "grpc-retry-pushback-ms"
# gRPC reports an unreachable server as UNAVAILABLE too; only these texts tell it from a server that said so itself.
UNREACHABLE = ("failed to connect to all addresses", "DNS resolution failed", "connections to all backends failing")

# Statuses of a health check that mean "not now" rather than "not at all".
NOT_SERVING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.NOT_FOUND)


class UnexpectedReply(EmbedmuxError):
    """A status outside the tree, or a reply that contradicts itself: most likely not an embedmux server."""


def status_error(code: grpc.StatusCode, message: str, *, retry_after_ms: int = 0) -> EmbedmuxError:
    """The exception for a status, not yet raised. ``retry_after_ms`` 0 is unknown."""
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and retry_after_ms:
        return Overloaded(message, retry_after_s=retry_after_ms / 1000)
    if code in CLASSES:
        return CLASSES[code](message)
    return UnexpectedReply(f"the server answered {code.name}: {message}")


def call_error(error: grpc.RpcError, target: str) -> EmbedmuxError:
    """The exception for a call to ``target`` that failed as a whole."""
    code, details = error.code(), error.details() or "no details"
    if code is grpc.StatusCode.UNAVAILABLE and any(text in details for text in UNREACHABLE):
        reason = details.rsplit(": ", 1)[-1]
        return Unavailable(
            f"no server answers at {target} ({reason}); start one with `embedmux serve` or name another address"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{target} did not answer in time ({details}); raise `timeout` or send fewer texts")
    return status_error(code, details, retry_after_ms=push_back_ms(error))


def not_serving_in_time(target: str, timeout: float) -> DeadlineExceeded:
    """The exception for a server that did not come up."""
    return DeadlineExceeded(f"{target} does not serve after {timeout:g} s; look at the server's log, or wait longer")


def push_back_ms(error: grpc.RpcError) -> int:
    """The milliseconds the server asked to wait before another try; 0 when it did not say."""
    for key, value in error.trailing_metadata() or ():
        if key == PUSH_BACK and value.isdigit():
            return int(value)
    return 0


def failure_error(failure: types_pb2.Failure) -> EmbedmuxError:
    """The exception for one request of a stream that failed as a whole."""
    code = CODES.get(failure.code, grpc.StatusCode.UNKNOWN)
    return status_error(code, failure.message, retry_after_ms=failure.retry_after_ms)


def text_error(error: types_pb2.TextError) -> EmbedmuxError:
    """The exception for one text of a reply."""
    return status_error(CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.message)


def status_of(error: EmbedmuxError) -> grpc.StatusCode:
    """The status an exception stands for; the inverse of ``status_error``."""
    for kind in type(error).__mro__:
        for code, known in CLASSES.items():
            if kind is known:
                return code
    return grpc.StatusCode.UNKNOWN


def first_error(errors: dict[int, EmbedmuxError], *, num_texts: int, noun: str = "text") -> EmbedmuxError:
    """The exception for a call that does not take failed texts: the first one's, naming it and counting the others."""
    index = min(errors)
    others = f" (and {len(errors) - 1} more of {num_texts} {noun}s failed)" if len(errors) > 1 else ""
    error, message = errors[index], f"{noun} {index}: {errors[index]}{others}"
    if isinstance(error, Overloaded):
        return Overloaded(message, retry_after_s=error.retry_after_s)
    return type(error)(message)
