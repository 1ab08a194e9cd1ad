"""What a front counts: texts by whom they are for, bounded names, sums over fronts."""

import json
from collections.abc import Callable

from embedmux.server.metrics.counters import MAX_ADAPTERS, MAX_TENANTS, FrontCounters, merged
from embedmux.server.records import Priority, Terms
from embedmux.server.requests import RerankResult

Result = Callable[..., RerankResult]


def table(counters: FrontCounters, name: str) -> dict[tuple[str, ...], object]:
    return {tuple(labels): value for labels, value in counters.as_dict()[name]}


def test_texts_count_by_model_adapter_tenant_and_priority(counters: FrontCounters) -> None:
    assert table(counters, "texts") == {
        ("mini", "law", "ann", "interactive"): [2, 12, 0],
        ("mini", "law", "bob", "interactive"): [1, 6, 1],
        ("mini", "none", "bob", "interactive"): [1, 3, 0],
    }
    assert table(counters, "requests") == {("mini", "ann", "interactive"): 1, ("mini", "bob", "interactive"): 1}


def test_a_text_that_failed_counts_as_its_error_and_not_as_served(counters: FrontCounters) -> None:
    assert table(counters, "errors") == {("mini", "NotFound"): 1}


def test_texts_without_adapters_and_of_nobody_count_under_none(result: Result) -> None:
    counters = FrontCounters()
    counters.of_model("judge").answered(Terms(priority=Priority.BULK), result(4, 4))
    assert table(counters, "texts") == {("judge", "none", "none", "bulk"): [2, 8, 0]}
    assert table(counters, "reading") == {}


def test_calls_count_by_method_and_code_with_their_latency(counters: FrontCounters) -> None:
    calls = table(counters, "calls")
    assert set(calls) == {("Embedder/Embed", "OK"), ("Embedder/Embed", "NOT_FOUND")}
    histogram = calls["Embedder/Embed", "OK"]
    assert isinstance(histogram, dict)
    assert (sum(histogram["counts"]), histogram["sum"]) == (1, 0.004)
    assert table(counters, "in_flight") == {("Embedder/Embed",): 0, ("Reranker/Rerank",): 1}


def test_refusals_count_by_reason(counters: FrontCounters) -> None:
    assert table(counters, "refused") == {
        ("deadline", "mini", "bob", "interactive"): 1,
        ("calls", "none", "none", "none"): 1,
    }


def test_names_beyond_the_limit_count_as_other(result: Result) -> None:
    counters = FrontCounters()
    model = counters.of_model("mini")
    for number in range(MAX_ADAPTERS + 50):
        terms = Terms(tenant=f"t{number}")
        model.answered(terms, result(1), adapters=(f"a{number}",))
        model.refused(terms, "queue")
    texts = table(counters, "texts")
    assert len({labels[2] for labels in texts}) == MAX_TENANTS + 1
    assert len({labels[1] for labels in texts}) == MAX_ADAPTERS + 1
    assert texts["mini", "other", "other", "interactive"] == [50, 50, 0]
    assert table(counters, "refused")["queue", "mini", "other", "interactive"] == MAX_ADAPTERS + 50 - MAX_TENANTS
    model.answered(Terms(tenant="t7"), result(1), adapters=("a7",))  # who was known stays so
    assert table(counters, "texts")["mini", "a7", "t7", "interactive"] == [2, 2, 0]


def test_too_many_pairs_of_names_tell_tenants_apart_and_adapters_no_more(result: Result) -> None:
    counters = FrontCounters(max_series=10)
    for number in range(100):
        counters.of_model("mini").answered(Terms(tenant=f"t{number % 5}"), result(1), adapters=(f"a{number}",))
    texts = table(counters, "texts")
    assert len(texts) == 10 + 5
    assert texts["mini", "other", "t3", "interactive"] == [18, 18, 0]


def test_fronts_add_up_after_they_crossed_as_json(counters: FrontCounters, result: Result) -> None:
    other = FrontCounters()
    other.of_model("mini").answered(Terms(tenant="ann"), result(5), adapters=("law",), reading_s=0.2)
    other.of_model("judge").answered(Terms(tenant="eve"), result(1))
    other.finished("Embedder/Embed", "OK", 9.0)
    sum_of_both = merged([counters.as_dict(), json.loads(json.dumps(other.as_dict()))])
    found = {name: {tuple(labels): value for labels, value in rows} for name, rows in sum_of_both.items()}
    assert found["texts"]["mini", "law", "ann", "interactive"] == [3, 17, 0]
    assert found["texts"]["judge", "none", "eve", "interactive"] == [1, 1, 0]
    assert found["in_flight"]["Embedder/Embed",] == -1  # the other front only ended one
    calls = found["calls"]["Embedder/Embed", "OK"]
    assert (sum(calls["counts"]), calls["sum"]) == (2, 9.004)
    assert sum(found["reading"]["mini",]["counts"]) == 2


def test_a_sum_shares_nothing_with_its_parts(counters: FrontCounters, result: Result) -> None:
    before = merged([counters.as_dict()])
    kept = json.dumps(before)
    counters.of_model("mini").answered(Terms(tenant="ann"), result(5), adapters=("law",), reading_s=0.1)
    counters.finished("Embedder/Embed", "OK", 1.0)
    assert json.dumps(before) == kept
    assert merged([]) == merged([{}])
