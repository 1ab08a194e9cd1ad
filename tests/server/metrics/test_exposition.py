"""What is exported: both formats parse, histograms are cumulative, and the dashboard asks only for what there is."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from embedmux.server.facts import ServerState
from embedmux.server.metrics import families
from embedmux.server.metrics.exposition import registry
from embedmux.server.metrics.families import Family, Kind
from embedmux.server.metrics.ports import Sources

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana" / "embedmux.json"
FAMILIES = [value for value in vars(families).values() if isinstance(value, Family)]


@pytest.fixture
def samples(sources: Sources) -> dict[str, list[Any]]:
    """Every sample by name, from Prometheus' own format."""
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(generate_latest(registry(sources)).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def value(samples: dict[str, list[Any]], name: str, **labels: str) -> float:
    (found,) = [sample.value for sample in samples[name] if labels.items() <= sample.labels.items()]
    return found


def test_openmetrics_says_the_same(sources: Sources, samples: dict[str, list[Any]]) -> None:
    # The parser is strict: it raises for what breaks the standard.
    strict = list(parse_openmetrics(generate_openmetrics(registry(sources)).decode()))
    names = {sample.name for family in strict for sample in family.samples}
    assert names == set(samples)


def test_every_family_has_a_help_text_and_stands_even_when_nothing_was_counted(sources: Sources) -> None:
    empty = replace(sources, counters=dict, snapshot=dict, state=lambda: ServerState.STARTING)
    text = generate_latest(registry(empty)).decode()
    for family in FAMILIES:
        name = family.name + ("_total" if family.kind is Kind.COUNTER else "")
        assert f"# HELP {name} {family.help}\n" in text


def test_every_histogram_is_cumulative_and_ends_with_its_count(samples: dict[str, list[Any]]) -> None:
    for family in FAMILIES:
        if family.kind is not Kind.HISTOGRAM:
            continue
        counts = samples[f"{family.name}_count"]
        assert counts, family.name
        for count in counts:
            buckets = [each for each in samples[f"{family.name}_bucket"] if count.labels.items() <= each.labels.items()]
            bounds, values = [float(each.labels["le"]) for each in buckets], [each.value for each in buckets]
            assert bounds == sorted(bounds) and values == sorted(values), family.name
            assert bounds[-1] == float("inf") and values[-1] == count.value


def test_histograms_keep_count_and_sum(samples: dict[str, list[Any]]) -> None:
    queue = {"model": "mini", "priority": "interactive"}
    assert value(samples, "embedmux_queue_seconds_count", **queue) == 6
    assert value(samples, "embedmux_queue_seconds_sum", **queue) == pytest.approx(99.036)
    assert value(samples, "embedmux_queue_seconds_bucket", le="0.05", **queue) == 5
    assert value(samples, "embedmux_compute_seconds_count", model="mini") == 4
    assert value(samples, "embedmux_call_seconds_count", method="Embedder/Embed", code="OK") == 1


def test_numbers_of_the_engine_stand_under_the_models_name(samples: dict[str, list[Any]]) -> None:
    assert value(samples, "embedmux_engine_tokens_total", model="mini") == 70
    assert value(samples, "embedmux_dropped_texts_total", model="mini", reason="expired") == 3
    assert value(samples, "embedmux_engine_refused_requests_total", model="mini", reason="queue") == 2
    assert value(samples, "embedmux_halved_batches_total", model="mini") == 1
    assert {sample.labels["reason"] for sample in samples["embedmux_dropped_texts_total"]} == {"expired", "late"}
    assert value(samples, "embedmux_cost_coefficient_seconds", model="idle", term="token") == 1e-5
    assert value(samples, "embedmux_adapters", model="mini", status="draining") == 1
    assert value(samples, "embedmux_adapter_limit_bytes", model="mini") == 4000


def test_numbers_of_the_front_and_the_server(samples: dict[str, list[Any]]) -> None:
    bob = {"tenant": "bob", "adapter": "law", "model": "mini", "priority": "interactive"}
    assert value(samples, "embedmux_tokens_total", **bob) == 6
    assert value(samples, "embedmux_truncated_texts_total", **bob) == 1
    assert value(samples, "embedmux_refused_requests_total", reason="deadline", tenant="bob") == 1
    assert value(samples, "embedmux_calls_in_flight", method="Reranker/Rerank") == 1
    assert value(samples, "embedmux_state", state="serving") == 1
    assert value(samples, "embedmux_state", state="draining") == 0
    assert value(samples, "embedmux_engine_restarts_total") == 1
    assert value(samples, "embedmux_build_info", version="1.2.3") == 1
    assert value(samples, "embedmux_coalesced_texts_total") == 6


def test_a_tenants_name_cannot_break_the_format(sources: Sources) -> None:
    rows = [[["mini", 'a"} 1\\', "interactive"], 2]]
    text = generate_latest(registry(replace(sources, counters=lambda: {"requests": rows}))).decode()
    (family,) = [found for found in text_string_to_metric_families(text) if found.name == "embedmux_requests"]
    assert [(sample.labels["tenant"], sample.value) for sample in family.samples] == [('a"} 1\\', 2)]


def test_the_dashboard_asks_only_for_what_is_exported(samples: dict[str, list[Any]]) -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = re.findall(r"(?:embedmux|process)_\w+", json.dumps(list(expressions(dashboard))))
    assert len(asked) > 40
    assert set(asked) <= set(samples)
    exported = {re.sub(r"_(bucket|count|sum)$", "", name) for name in samples if name.startswith("embedmux_")}
    assert {family.name + "_total" * (family.kind is Kind.COUNTER) for family in FAMILIES} == exported


def test_the_dashboard_has_its_rows_and_no_panel_twice() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Traffic", "Latency", "Overload", "Batching", "Adapters", "Engine", "By tenant"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)


def expressions(node: Any) -> Any:
    """Every query in a dashboard."""
    if isinstance(node, dict):
        for name, inner in node.items():
            if name in ("expr", "query", "definition") and isinstance(inner, str):
                yield inner
            else:
                yield from expressions(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from expressions(inner)
