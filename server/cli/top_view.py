"""One view of ``embedmux top``: two scrapes as tables."""

from __future__ import annotations

from collections.abc import Mapping

from rich.columns import Columns
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from embedmux.server.cli.scrape import Scrape

ANSWERING = ("Embedder/Embed", "Reranker/Rerank")  # calls whose length is the latency of one request
STYLES = {"serving": "bold green", "starting": "yellow", "restarting": "bold red"}
MOST_ROWS = 15


def view(address: str, now: Scrape, before: Scrape) -> Group:
    """What is so now, and what was gained since ``before``."""
    gained = now.since(before)
    latencies = Columns([traffic(now, gained), latency(gained), refusals(gained)], padding=(0, 3))
    return Group(headline(address, now, gained), latencies, device(now, gained), texts(gained), tenants(gained))


def headline(address: str, now: Scrape, gained: Scrape) -> Text:
    """The server in a line: version, state, restarts of the engine."""
    state = next((name for (name,), value in now.by("embedmux_state", "state").items() if value), "unknown")
    version = next(iter(now.by("embedmux_build_info", "version")), ("",))[0]
    restarts = now.value("embedmux_engine_restarts_total")
    line = Text.assemble(("embedmux ", "bold"), f"{version} at {address} · ", (state, STYLES.get(state, "")))
    line.append(f" · engine restarts {restarts:.0f}", style="bold red" if restarts else "")
    return line.append(f" · last {gained.at:.1f} s" if gained.at else " · measuring", style="dim")


def traffic(now: Scrape, gained: Scrape) -> Table:
    """How much comes, is answered and waits."""
    table = _table("traffic", "")
    for name, counter in (("requests/s", "requests"), ("texts/s", "texts"), ("tokens/s", "tokens")):
        table.add_row(name, _rate(gained.value(f"embedmux_{counter}_total"), gained))
    table.add_row("calls in flight", f"{now.value('embedmux_calls_in_flight'):,.0f}")
    table.add_row("queued texts", f"{now.value('embedmux_queued_texts'):,.0f}")
    table.add_row("queued tokens", f"{now.value('embedmux_queued_tokens'):,.0f}")
    return table


def latency(gained: Scrape) -> Table:
    """Quantiles of the steps of a request."""
    table = _table("latency", "p50", "p99")

    def answering(labels: Mapping[str, str]) -> bool:
        return labels["method"] in ANSWERING and labels["code"] == "OK"

    for name, histogram in (
        ("call", "call_seconds"),
        ("tokenize", "tokenize_seconds"),
        ("queue", "queue_seconds"),
        ("compute", "compute_seconds"),
    ):
        chosen = answering if name == "call" else lambda _: True
        found = [gained.quantile(f"embedmux_{histogram}", quantile, chosen) for quantile in (0.5, 0.99)]
        table.add_row(name, *map(_seconds, found))
    return table


def refusals(gained: Scrape) -> Table:
    """What got no answer of use, and why."""
    table = _table("refused, failed", "per s")
    found = {
        **{f"refused: {reason}": n for (reason,), n in gained.by("embedmux_refused_requests_total", "reason").items()},
        **{f"texts {reason}": n for (reason,), n in gained.by("embedmux_dropped_texts_total", "reason").items()},
        **{f"texts: {error}": n for (error,), n in gained.by("embedmux_text_errors_total", "error").items()},
    }
    for (code,), number in gained.by("embedmux_call_seconds_count", "code").items():
        if code not in ("OK", "RESOURCE_EXHAUSTED"):  # the latter stand above by reason
            found[f"calls {code}"] = number
    return _filled(table, {(name,): (number,) for name, number in found.items() if number}, gained)


def device(now: Scrape, gained: Scrape) -> Table:
    """What the engine does, by model."""
    table = _table("engine", "tokens/s", "batches/s", "cost of a batch", "cost error", "adapters", "memory")
    tokens, batches = (gained.by(f"embedmux_engine_{what}_total", "model") for what in ("tokens", "batches"))
    costs, errors = (
        now.by("embedmux_cost_coefficient_seconds", "model", "term"),
        now.by("embedmux_cost_error_ratio", "model"),
    )
    adapters, used = now.by("embedmux_adapters", "model"), now.by("embedmux_adapter_used_bytes", "model")
    limits = now.by("embedmux_adapter_limit_bytes", "model")
    for (model,), error in errors.items():
        a, b = costs.get((model, "batch"), 0.0), costs.get((model, "token"), 0.0)
        table.add_row(
            model,
            _rate(tokens.get((model,), 0.0), gained),
            _rate(batches.get((model,), 0.0), gained),
            f"{a * 1e3:.2f} ms + {b * 1e6:.1f} µs a token",
            f"{error:.0%}",
            f"{adapters.get((model,), 0.0):.0f}",
            f"{decimal(int(used.get((model,), 0)))} of {decimal(int(limits.get((model,), 0)))}",
        )
    fill, hits = gained.mean("embedmux_batch_fill_ratio"), gained.value("embedmux_cache_hits_total")
    shared = gained.value("embedmux_coalesced_texts_total")
    table.caption_justify = "left"
    table.caption = (
        f"batches {'–' if fill is None else f'{fill:.0%}'} full · {_rate(hits, gained)} texts/s from the cache"
    )
    table.caption += f" · {_rate(shared, gained)} texts/s computed with one that was the same"
    return table


def texts(gained: Scrape) -> Table:
    """Rates by model and adapter, the busiest first."""
    table = _table("model", "adapter", "texts/s", "tokens/s", "truncated/s")
    table.columns[1].justify = "left"
    return _filled(table, _joined(gained, ("texts", "tokens", "truncated_texts"), "model", "adapter"), gained)


def tenants(gained: Scrape) -> Table:
    """Rates by tenant, the busiest first."""
    table = _table("tenant", "requests/s", "texts/s", "tokens/s", "refused/s")
    return _filled(table, _joined(gained, ("requests", "texts", "tokens", "refused_requests"), "tenant"), gained)


def _joined(gained: Scrape, counters: tuple[str, ...], *labels: str) -> dict[tuple[str, ...], tuple[float, ...]]:
    """Several counters by the same labels; what gained nothing is left out."""
    columns = [gained.by(f"embedmux_{counter}_total", *labels) for counter in counters]
    keys = dict.fromkeys(key for column in columns for key, value in column.items() if value)
    return {key: tuple(column.get(key, 0.0) for column in columns) for key in keys}


def _filled(table: Table, rows: Mapping[tuple[str, ...], tuple[float, ...]], gained: Scrape) -> Table:
    ordered = sorted(rows.items(), key=lambda row: row[1], reverse=True)
    for names, values in ordered[:MOST_ROWS]:
        table.add_row(*names, *(_rate(value, gained) for value in values))
    if not rows:
        table.add_row("–", *("–" for _ in table.columns[1:]))
    if len(ordered) > MOST_ROWS:
        table.add_row(f"and {len(ordered) - MOST_ROWS} more", *("" for _ in table.columns[1:]))
    return table


def _table(name: str, *columns: str) -> Table:
    table = Table(name, header_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _rate(gained: float, over: Scrape) -> str:
    if not over.at:
        return "–"
    rate = gained / over.at
    return f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:,.2f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"
