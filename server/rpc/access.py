"""One line in the log for each call that ended: how, for whom, how long it took; never a text or a part of one."""

import logging

import grpc

from embedmux.server.rpc.calls import Call

FAILURES = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)

_log = logging.getLogger(__name__)


class AccessLog:
    """A Watcher. ``logs_all``: every call; otherwise those that failed by the server's fault (``FAILURES``)."""

    def __init__(self, *, logs_all: bool) -> None:
        self._logs_all = logs_all

    def ended(self, call: Call, status: grpc.StatusCode, now: float) -> None:
        """Writes the line."""
        is_failure = status in FAILURES
        if not (is_failure or self._logs_all):
            return
        fields = {
            "method": call.method,
            "request_id": call.id,
            "tenant": call.tenant,
            "status": status.name,
            "milliseconds": round((now - call.began) * 1000, 3),
            "texts": call.notes.num_texts,
            "tokens": call.notes.num_tokens,
        }
        _log.log(
            logging.WARNING if is_failure else logging.INFO,
            "call %s of %s, tenant %r, ended %s after %.1f ms: %d texts, %d tokens",
            call.id, call.method, call.tenant, status.name, fields["milliseconds"], fields["texts"], fields["tokens"],
            extra={"fields": fields},
        )  # fmt: skip
