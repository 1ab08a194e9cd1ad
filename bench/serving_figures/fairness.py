"""Two tenants with weights 3 to 1 that both always wait; and how well the server knows when it will be done."""

from __future__ import annotations

from dataclasses import dataclass

from harness.http2.load import Load, arrivals, poisson, run_together
from harness.http2.plans import Closed
from harness.servers import running, serving

from serving_figures.requests import Texts, bodies
from serving_figures.scraped import histogram, quantile, since

ARGUMENTS = ("--dtype", "bfloat16", "--no-coalesce")
TEXTS_A_REQUEST, IN_FLIGHT, SECONDS, WARM_UP_S = 32, 48, 25.0, 5.0
WEIGHTS = {"large": 3.0, "small": 1.0}
ERROR = "embedmux_prediction_error_ratio"
PREDICTED_SHARES, PREDICTED_S = (0.7, 0.9), 12.0


@dataclass(frozen=True, slots=True)
class Fairness:
    """The tenants' parts of all texts that were answered, and the larger of their relative errors."""

    parts: dict[str, float]
    error: float


def fair_shares(texts: Texts) -> Fairness:
    """Both in closed loops, each with more in flight than several batches hold."""
    options = [part for name, weight in WEIGHTS.items() for part in ("--tenant", f"{name}={weight:g}")]
    with serving(*ARGUMENTS, *options) as address, Load(address) as first, Load(address) as second:
        plans = [
            Closed(
                bodies(texts.short(int(9000 * SECONDS)), TEXTS_A_REQUEST), IN_FLIGHT, SECONDS,
                metadata={"x-embedmux-tenant": name},
            )
            for name in WEIGHTS
        ]  # fmt: skip
        found = run_together((first, plans[0]), (second, plans[1]))
    rates = [each.rate(since_s=WARM_UP_S, until_s=SECONDS - 0.5) for each in found]
    parts = {name: rate / sum(rates) for name, rate in zip(WEIGHTS, rates, strict=True)}
    wanted = {name: weight / sum(WEIGHTS.values()) for name, weight in WEIGHTS.items()}
    return Fairness(parts, max(abs(parts[name] / wanted[name] - 1.0) for name in WEIGHTS))


def deadline_error(texts: Texts) -> float:
    """|predicted - actual| / actual of the time from admission to answer, 95th percentile, as the server counts it.

    Poisson arrivals of requests with 32 texts at 70 % and 90 % of the peak.
    """
    with running(*ARGUMENTS) as server, Load(server.address, connections=4) as load:
        large = bodies(texts.short(12_000 * 5), TEXTS_A_REQUEST)
        peak = load.closed(large, in_flight=IN_FLIGHT, seconds=5.0).rate()
        before = histogram(server.metrics, ERROR)
        for share in PREDICTED_SHARES:
            count = len(arrivals(rate=share * peak, seconds=PREDICTED_S, seed=5))
            once = bodies(texts.short(count * TEXTS_A_REQUEST), TEXTS_A_REQUEST)
            load.run(poisson(once, rate=share * peak, seconds=PREDICTED_S, seed=5))
        after = histogram(server.metrics, ERROR)
    return quantile(since(after, before), 0.95)
