"""Errors -> gRPC: one status for each class of the tree, a message that fits into a trailer, the push-back."""

import logging
import math

import grpc

from embedmux.server import errors
from embedmux.server.errors import EmbedmuxError

STATUS: dict[type[EmbedmuxError], grpc.StatusCode] = {
    errors.EmbedmuxError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.SpaceMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AdapterRejected: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AdapterConflict: grpc.StatusCode.ALREADY_EXISTS,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.EngineFailure: grpc.StatusCode.INTERNAL,
    errors.InvalidConfig: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ModelRejected: grpc.StatusCode.FAILED_PRECONDITION,
}
# Clients refuse trailers over 8 KiB, and gRPC writes a non-ASCII byte of a message as three.
MAX_MESSAGE_BYTES = 2000

_log = logging.getLogger(__name__)


def status_of(error: EmbedmuxError) -> grpc.StatusCode:
    """The status of the error's class; a class without one of its own has its parent's."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def code_of(error: EmbedmuxError) -> int:
    """The status as a google.rpc.Code number."""
    number: int = status_of(error).value[0]
    return number


def message_of(error: EmbedmuxError) -> str:
    """The error's message as valid UTF-8, cut to what a trailer carries."""
    # A file name in the message may hold surrogates, which neither proto nor gRPC can send.
    encoded = str(error).encode("utf-8", "replace")
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore") + " ... (cut)"


def retry_after_ms(error: EmbedmuxError) -> int | None:
    """When trying again makes sense, in milliseconds; ``None`` where the error does not say."""
    return max(1, math.ceil(error.retry_after_s * 1000)) if isinstance(error, errors.Overloaded) else None


def refusal(error: BaseException, *, method: str, call_id: str) -> EmbedmuxError:
    """``error`` if a caller may see it; otherwise an INTERNAL one that names the call, and the traceback in the log."""
    if isinstance(error, EmbedmuxError):
        return error
    _log.error("call %s of %s failed", call_id, method, exc_info=error, extra={"fields": {"request_id": call_id}})
    return errors.EngineFailure(f"internal error in call {call_id}; the server's log tells more under this id")
