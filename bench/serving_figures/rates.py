"""How much of the engine's speed is left behind gRPC: in bulk, one text a call, beside a bare echo and infinity."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from harness.echo import echoing
from harness.http2.load import Load
from harness.infinity import infinity_rate
from harness.servers import serving
from rich.progress import track

from serving_figures.engine import EngineBeside
from serving_figures.requests import Texts, bodies

ROUNDS, SECONDS, WARM_UP_S = 5, 4.0, 2.0
TEXTS_A_REQUEST, LARGE_IN_FLIGHT, SMALL_IN_FLIGHT = 32, 12, 64
CONNECTIONS, GATHER_S = 4, 0.001
MOST_A_SECOND = 12_000
ARGUMENTS = ("--dtype", "bfloat16", "--no-coalesce")


@dataclass(frozen=True, slots=True)
class Rates:
    """Texts a second, the median of the rounds, and ratios as medians of each round's; ``generator``: cores it used."""

    batched: float
    unary: float
    engine: float
    echo: float
    infinity: float | None
    batched_over_engine: float
    unary_over_floor: float
    generator_batched: float
    generator_unary: float


def rates(texts: Texts) -> Rates:
    """Everything in turns in one run; infinity, whose server would take memory and cores, behind that."""
    found: dict[str, list[float]] = {name: [] for name in ("batched", "unary", "engine", "echo", "batched_cpu", "cpu")}
    with (
        serving(*ARGUMENTS) as address,
        Load(address, connections=CONNECTIONS) as load,
        echoing() as floor,
        Load(floor, connections=CONNECTIONS) as echo,
        EngineBeside() as engine,
    ):
        engine.warm_up(texts.short(4000))
        load.closed(bodies(texts.short(20_000), 1), in_flight=SMALL_IN_FLIGHT, seconds=WARM_UP_S)
        for _ in track(range(ROUNDS), description="rates"):
            found["engine"].append(engine.rate(texts.short(int(MOST_A_SECOND * SECONDS)), SECONDS))
            large = bodies(texts.short(int(MOST_A_SECOND * SECONDS)), TEXTS_A_REQUEST)
            run = load.closed(large, in_flight=LARGE_IN_FLIGHT, seconds=SECONDS)
            found["batched"].append(TEXTS_A_REQUEST * run.rate())
            found["batched_cpu"].append(run.cpu_seconds / run.wall_seconds)
            small = bodies(texts.short(int(MOST_A_SECOND * SECONDS)), 1)
            run = load.closed(small, in_flight=SMALL_IN_FLIGHT, seconds=SECONDS, gather_s=GATHER_S)
            found["unary"].append(run.rate())
            found["cpu"].append(run.cpu_seconds / run.wall_seconds)
            run = echo.closed(small, in_flight=SMALL_IN_FLIGHT, seconds=SECONDS, gather_s=GATHER_S)
            found["echo"].append(run.rate())
    middle = {name: statistics.median(values) for name, values in found.items()}
    return Rates(
        batched=middle["batched"],
        unary=middle["unary"],
        engine=middle["engine"],
        echo=middle["echo"],
        infinity=best_of_infinity(texts),
        batched_over_engine=median_of(lambda a, b: a / b, found["batched"], found["engine"]),
        unary_over_floor=median_of(lambda a, b, c: a / min(b, c), found["unary"], found["engine"], found["echo"]),
        generator_batched=middle["batched_cpu"],
        generator_unary=middle["cpu"],
    )


def best_of_infinity(texts: Texts) -> float | None:
    """Requests a second of infinity over HTTP, the better of float32 and bfloat16; None without infinity."""
    seconds = 2 * SECONDS
    found = [infinity_rate(dtype, texts.short(int(1500 * seconds)), seconds) for dtype in ("float32", "bfloat16")]
    known = [rate for rate in found if rate is not None]
    if not known:
        print("infinity is not there to compare with", file=sys.stderr)
    return max(known, default=None)


def median_of(ratio: Callable[..., float], *series: list[float]) -> float:
    """The median over rounds of a ratio of that round's values."""
    return statistics.median(ratio(*values) for values in zip(*series, strict=True))
