"""What came back: one row for each answered request, in columns, and the first message of each status."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from embedmux.client.errors import CODES, push_back_ms

OK = grpc.StatusCode.OK.value[0]
UNKNOWN = grpc.StatusCode.UNKNOWN.value[0]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a run, or one process of it, got back. Times are seconds after the start; a row is an answered request.

    scheduled, sent, done [N] float64: when it was due, when it was sent, when its answer came.
    code [N] uint8: its gRPC status. A request all of whose texts failed has the status of the first.
    texts, texts_ok, tokens [N] uint32: texts sent, texts answered with a vector, tokens the model read.
    not_sent [M] float64: when requests were due that were not sent, since too many were under way.
    ``push_backs_ms``, ``failed_texts`` (by status name) and ``num_truncated`` leave out the warm-up; ``messages`` has
    the first one of each status. ``num_cut_off`` were under way at an early end. ``cpu_shares``: of a core, one a
    process.
    """

    scheduled: npt.NDArray[np.float64]
    sent: npt.NDArray[np.float64]
    done: npt.NDArray[np.float64]
    code: npt.NDArray[np.uint8]
    texts: npt.NDArray[np.uint32]
    texts_ok: npt.NDArray[np.uint32]
    tokens: npt.NDArray[np.uint32]
    not_sent: npt.NDArray[np.float64]
    push_backs_ms: npt.NDArray[np.uint32]
    failed_texts: dict[str, int]
    messages: dict[str, str]
    num_truncated: int
    num_cut_off: int
    cpu_shares: tuple[float, ...]
    ended_s: float


COLUMNS = ("scheduled", "sent", "done", "code", "texts", "texts_ok", "tokens", "not_sent", "push_backs_ms")


def merge(parts: Sequence[Answers]) -> Answers:
    """The answers of all processes as those of one."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return Answers(
        **columns,
        failed_texts=dict(sum((Counter(part.failed_texts) for part in parts), Counter())),
        messages={name: message for part in reversed(parts) for name, message in part.messages.items()},
        num_truncated=sum(part.num_truncated for part in parts),
        num_cut_off=sum(part.num_cut_off for part in parts),
        cpu_shares=tuple(share for part in parts for share in part.cpu_shares),
        ended_s=max(part.ended_s for part in parts),
    )


@dataclass(slots=True)
class Tally:
    """Answers while they come in; ``measured_from`` is the end of the warm-up, in seconds after the start."""

    measured_from: float
    scheduled: array[float] = field(default_factory=lambda: array("d"))
    sent: array[float] = field(default_factory=lambda: array("d"))
    done: array[float] = field(default_factory=lambda: array("d"))
    code: array[int] = field(default_factory=lambda: array("B"))
    texts: array[int] = field(default_factory=lambda: array("I"))
    texts_ok: array[int] = field(default_factory=lambda: array("I"))
    tokens: array[int] = field(default_factory=lambda: array("I"))
    not_sent: array[float] = field(default_factory=lambda: array("d"))
    push_backs_ms: array[int] = field(default_factory=lambda: array("I"))
    failed_texts: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    num_truncated: int = 0
    num_ok: int = 0

    def answered(self, reply: Any, *, scheduled: float, sent: float, done: float, num_texts: int) -> None:
        """Counts a reply, which may have failed texts in it."""
        code, num_failed = OK, len(reply.errors)
        if num_failed:
            for error in reply.errors:
                self._message(error.code, error.message)
            if scheduled >= self.measured_from:
                self.failed_texts.update(name_of(error.code) for error in reply.errors)
            if num_failed == num_texts:
                code = reply.errors[0].code
        if scheduled >= self.measured_from and reply.num_tokens != reply.num_tokens_original:
            pairs = zip(reply.num_tokens, reply.num_tokens_original, strict=True)
            self.num_truncated += sum(read < had for read, had in pairs)
        self._row(code, scheduled, sent, done, num_texts, num_texts - num_failed, sum(reply.num_tokens))
        self.num_ok += code == OK

    def refused(self, error: Any, *, scheduled: float, sent: float, done: float, num_texts: int) -> None:
        """Counts a request that ended with a status."""
        code = error.code().value[0]
        self._message(code, error.details() or "no details")
        push_back = push_back_ms(error)
        if push_back and scheduled >= self.measured_from:
            self.push_backs_ms.append(push_back)
        self._row(code, scheduled, sent, done, num_texts, 0, 0)

    def answers(self, *, num_cut_off: int, cpu_share: float, ended_s: float) -> Answers:
        """All of it, as of now."""
        columns: dict[str, Any] = {name: np.array(getattr(self, name)) for name in COLUMNS}
        return Answers(
            **columns,
            failed_texts=dict(self.failed_texts),
            messages=dict(self.messages),
            num_truncated=self.num_truncated,
            num_cut_off=num_cut_off,
            cpu_shares=(cpu_share,),
            ended_s=ended_s,
        )

    def _row(
        self, code: int, scheduled: float, sent: float, done: float, num_texts: int, num_ok: int, num_tokens: int
    ) -> None:
        self.code.append(code if code in CODES else UNKNOWN)
        self.scheduled.append(scheduled)
        self.sent.append(sent)
        self.done.append(done)
        self.texts.append(num_texts)
        self.texts_ok.append(num_ok)
        self.tokens.append(num_tokens)

    def _message(self, code: int, message: str) -> None:
        self.messages.setdefault(name_of(code), message)


def name_of(code: int) -> str:
    """A status by its number, as gRPC calls it."""
    return str(CODES.get(code, grpc.StatusCode.UNKNOWN).name)
