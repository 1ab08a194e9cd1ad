"""What one run sends, and when: one frozen record, which worker processes get a part of each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedmux.client.load.arrivals import poisson_arrivals
from embedmux.client.load.mix import Share, drawn_shares, with_task
from embedmux.client.load.texts import NUM_DISTINCT, LengthsName, made_texts, sampled_texts
from embedmux.client.texts import EmbedOptions, EncodingName, embed_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run. With ``rate`` (requests/s) it is an open loop; without, ``workers`` send one request after the other.

    Requests that are due in the first ``warm_up_s`` are sent and not measured. ``texts`` empty: made-up ones, in the
    lengths that ``lengths`` names. ``process`` is this part's place among ``num_processes``.
    """

    target: str
    rate: float | None = None
    workers: int = 1
    duration_s: float = 30.0
    warm_up_s: float = 3.0
    seed: int = 0
    mix: tuple[Share, ...] = (Share(None, None, 1.0),)
    lengths: LengthsName = "mixed"
    texts: tuple[str, ...] = ()
    texts_per_request: int = 1
    timeout_s: float = 10.0
    connections: int = 1
    max_in_flight: int = 10_000
    encoding: EncodingName = "float32"
    dimensions: int | None = None
    model: str | None = None
    metadata: tuple[tuple[str, str], ...] = ()
    process: int = 0
    num_processes: int = 1

    @property
    def total_s(self) -> float:
        """Seconds from the first request to the last, warm-up included."""
        return self.warm_up_s + self.duration_s

    @property
    def options(self) -> EmbedOptions:
        """What every request asks for. Over-long texts are cut, so that a load fits any model; cuts are counted."""
        return {
            "encoding": self.encoding,
            "dimensions": self.dimensions,
            "model": self.model,
            "truncate": "end",
        }

    def parts(self) -> list["Plan"]:
        """One plan for each process; together they send what this one says. (Poisson processes add up to one.)"""
        count = self.num_processes
        return [
            replace(
                self,
                rate=None if self.rate is None else self.rate / count,
                workers=share_of(self.workers, place, count),
                connections=max(1, share_of(self.connections, place, count)),
                max_in_flight=max(1, share_of(self.max_in_flight, place, count)),
                process=place,
            )
            for place in range(count)
        ]

    def arrivals(self) -> list[float]:
        """When each request is due, in seconds after the start; open loops only."""
        assert self.rate is not None, "a closed loop has no arrival times"
        arrivals: list[float] = poisson_arrivals(self.rate, self.total_s, self._generator(0)).tolist()
        return arrivals

    def requests(self) -> Iterator[Any]:
        """EmbedRequests without end: the same ones for the same seed and process."""
        texts, shares = self._texts(), drawn_shares(self.mix, self._generator(2))
        while True:
            yield embed_request(
                [with_task(next(texts), next(shares)) for _ in range(self.texts_per_request)], self.options
            )

    def _texts(self) -> Iterator[str]:
        if self.texts:
            return sampled_texts(self.texts, self._generator(1))
        first = int(np.random.default_rng(self.seed).integers(NUM_DISTINCT)) + self.process
        return made_texts(self.lengths, self._generator(1), first=first, step=self.num_processes)

    def _generator(self, purpose: int) -> np.random.Generator:
        """A generator of its own for each purpose and process, so that one's draws do not move another's."""
        return np.random.default_rng([self.seed, self.process, purpose])


def share_of(total: int, place: int, count: int) -> int:
    """The part of ``total`` things that falls to one of ``count`` places."""
    return total // count + (place < total % count)
