"""The figures of made-up answers, beside numpy's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedmux.client.load.answers import Answers
from embedmux.client.load.plan import Plan
from embedmux.client.load.summary import summarise

PLAN = Plan(target="", rate=100.0, duration_s=10.0, warm_up_s=2.0)
UNAVAILABLE = 14


def made_answers(count: int = 5000, seed: int = 0) -> Answers:
    """Answers to arrivals over 12 s, with log-normal latencies; every tenth is refused."""
    generator = np.random.default_rng(seed)
    scheduled = np.sort(generator.uniform(0, 12, count))
    latency = generator.lognormal(-4, 1, count)
    code = np.where(np.arange(count) % 10, 0, UNAVAILABLE).astype(np.uint8)
    return Answers(
        scheduled=scheduled,
        sent=scheduled + 0.001,
        done=scheduled + latency,
        code=code,
        texts=np.full(count, 3, np.uint32),
        texts_ok=np.where(code == 0, 3, 0).astype(np.uint32),
        tokens=np.where(code == 0, 30, 0).astype(np.uint32),
        not_sent=np.array([1.0, 5.0]),
        push_backs_ms=np.array([100, 300], np.uint32),
        failed_texts={},
        messages={"UNAVAILABLE": "restarting"},
        num_truncated=0,
        num_cut_off=0,
        cpu_shares=(0.3,),
        ended_s=12.0,
    )


def test_figures_are_numpys() -> None:
    answers = made_answers()
    found = summarise(answers, PLAN, slo_ms=50)
    is_due, is_ok = answers.scheduled >= 2, answers.code == 0
    latency_ms = (answers.done - answers.scheduled)[is_due & is_ok] * 1000
    expected = {f"p{percent:g}": np.percentile(latency_ms, percent) for percent in (50, 90, 99, 99.9)}
    assert found.latency_ms == pytest.approx(expected | {"max": latency_ms.max()})
    assert found.mean_ms == pytest.approx(latency_ms.mean())
    assert found.goodput == pytest.approx(3 * np.sum(latency_ms <= 50) / 10)
    assert found.num_requests == is_due.sum() + 1 and found.num_not_sent == 1
    assert found.offered_rate == pytest.approx(found.num_requests / 10)
    came = is_ok & (answers.done >= 2) & (answers.done < 12)
    assert found.achieved_rate == pytest.approx(came.sum() / 10)
    assert (found.texts_rate, found.tokens_rate) == pytest.approx((3 * came.sum() / 10, 30 * came.sum() / 10))
    assert list(found.statuses) == ["OK", "UNAVAILABLE"] and sum(found.statuses.values()) == is_due.sum()
    assert (found.num_push_backs, found.push_back_p50_ms) == (2, 200)
    assert found.lag_p99_ms == pytest.approx(1)


def test_intervals_and_curve_add_up_to_the_whole() -> None:
    found = summarise(made_answers(), PLAN, slo_ms=50)
    rates = [interval.texts_per_s for interval in found.intervals]
    assert np.mean(rates) == pytest.approx(found.texts_rate)
    assert [interval.start_s for interval in found.intervals][::6] == pytest.approx(range(10))
    percents, latencies = zip(*found.curve, strict=True)
    assert percents[0] == 0 and percents[-1] == 100 and latencies[-1] == found.latency_ms["max"]
    assert list(latencies) == sorted(latencies)


def test_a_busy_generator_and_a_late_one_are_named() -> None:
    answers = made_answers()
    busy = summarise(replace(answers, cpu_shares=(0.2, 0.93)), PLAN, slo_ms=50)
    assert any("used 93% of a core, the limit is 80%" in warning for warning in busy.warnings)
    late = summarise(replace(answers, sent=answers.scheduled + 0.2), PLAN, slo_ms=50)
    assert any("fell behind its schedule, by 200.0 ms" in warning for warning in late.warnings)
    all_ok = replace(answers, not_sent=np.empty(0), code=answers.code * 0, texts_ok=answers.texts)
    kept = summarise(all_ok, PLAN, slo_ms=50)
    assert kept.warnings == ()


def test_nothing_measured_is_no_division_by_zero() -> None:
    found = summarise(replace(made_answers(), ended_s=1.0), PLAN, slo_ms=50)
    assert (found.measured_s, found.achieved_rate, found.intervals) == (0.0, 0.0, ())


def test_a_plot_is_written_even_of_nothing(tmp_path: Path) -> None:
    plot = pytest.importorskip("embedmux.client.load.plot", exc_type=ImportError)
    for name, answers in (("all.png", made_answers()), ("none.svg", replace(made_answers(), ended_s=1.0))):
        plot.plot(summarise(answers, PLAN, slo_ms=50), tmp_path / name, title="a run")
        assert (tmp_path / name).stat().st_size > 5000
