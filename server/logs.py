"""How every process of the server writes its log: lines for people, or one JSON object a line for machines.

A client's texts stand in no line. What a line says beside its message travels as ``extra={"fields": {...}}``. gRPC's
library tells its own trouble on stderr too, in a form of its own.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from types import TracebackType

FORMATS = ("text", "json")


class JsonLines(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, process, pid, logger and message.

    Then the fields of the record, such as request_id, and the exception with its traceback if there is one. ASCII only,
    so that any reader copes.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        entry = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(process: str, log_format: str, *, shows_pid: bool = False) -> None:
    """Sets up the log of this process, on stderr. ``shows_pid`` is for lines of text; JSON always has it."""
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonLines(process))
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
    else:
        pid = " %(process)d" if shows_pid else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s {process}{pid} %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("embedmux").critical("the process ends: %s", kind.__name__, exc_info=(kind, error, trace))
