"""``embedmux bench`` against the fake server: tables, JSON, pictures, and what fails before any load."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from embedmux.server.cli import bench

QUICK = ("--duration", "0.4", "--warm-up", "0.1")


def test_an_open_loop_is_told_in_a_table_in_json_and_in_a_picture(run, fake, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written, drawn = tmp_path / "run.json", tmp_path / "run.png"
    words = ["--rate", "100", "--seed", "7", "--task", "retrieval:query=3", "--task", "none", "--encoding", "int8"]
    words += ["--metadata", "x-embedmux-tenant=load", "--metadata", "Authorization=secret"]
    done = run("bench", fake.address, *words, *QUICK, "--json", str(written), "--plot", str(drawn))
    assert done.code == 0, done.err
    assert "open loop at 100.0 requests/s of one text (retrieval:query 75%, none 25%; seed 7)" in done.out
    for row in ("requests", "offered", "goodput, within 100 ms", "latency p99.9", "generator: CPU"):
        assert f"│ {row} " in done.out
    document = json.loads(written.read_text())
    assert "secret" not in written.read_text()
    assert document["settings"]["metadata"] == {"x-embedmux-tenant": "load", "authorization": "(not written)"}
    assert (document["settings"]["seed"], document["settings"]["rate"], document["peak"]) == (7, 100.0, None)
    assert document["versions"]["server"] == "1.2.3" and "grpcio" in document["versions"]
    assert document["model"]["name"] == "fake"
    results = document["results"]
    assert results["statuses"] == {"OK": results["num_requests"]} and results["num_requests"] > 20
    assert set(results["latency_ms"]) == {"p50", "p90", "p99", "p99.9", "max"} and len(results["intervals"]) == 60
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert fake.metadata[-1]["x-embedmux-tenant"] == "load" and fake.metadata[-1]["authorization"] == "secret"


def test_without_a_rate_the_load_is_seventy_percent_of_the_peak(run, fake, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench, "PEAK_S", 0.5)
    monkeypatch.setattr(bench, "PEAK_WARM_UP_S", 0.1)
    done = run("bench", fake.address, *QUICK, "--json", str(tmp_path / "run.json"), "--lengths", "short")
    assert done.code == 0 and "the peak was" in done.out
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["settings"]["rate"] == pytest.approx(0.7 * document["peak"]["requests_per_s"])
    tasks = [(share["task"], share["role"], share["weight"]) for share in document["settings"]["mix"]]
    assert ("retrieval", "query", 0.5) in tasks and (None, None, 1.0) in tasks


def test_refusals_are_told_with_a_message_of_each_and_texts_come_from_a_file(run, fake, tmp_path: Path) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("fine\nrefuse NOT_FOUND\noverload 1000000\n\nfail INTERNAL\n")
    done = run("bench", fake.address, "--closed", "4", "--texts", str(source), "--processes", "2", *QUICK)
    assert done.code == 0, done.err
    assert "closed loop of 4 workers" in done.out and "│ offered" not in done.out
    for status, message in (
        ("NOT_FOUND", "refused: refuse NOT_FOUND"),
        ("RESOURCE_EXHAUSTED", "the queue is full"),
        ("INTERNAL", "failed: fail INTERNAL"),
    ):
        assert any(status in line and message in line for line in done.out.splitlines())
    assert "push-backs" in done.out and "median 200 ms" in done.out


def test_a_run_without_any_answer_is_a_failure_that_says_why(run, fake, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "refuse UNAVAILABLE"}\n')
    failed = run("bench", fake.address, "--rate", "50", "--texts", str(source), *QUICK)
    assert failed.code == 1 and "UNAVAILABLE" in failed.out
    assert f"error: no text was answered by {fake.address}: UNAVAILABLE " in failed.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--rate", "5", "--closed", "2"], 2, "leave one of them out"),
        (["--rate", "0"], 2, "--rate"),
        (["--closed", "2", "--processes", "3"], 2, "--closed 2 is fewer than --processes 3"),
        (["--task", "retrieval:passage"], 2, "it must be one of query, document"),
        (["--metadata", "tenant"], 2, "metadata 'tenant' must be KEY=VALUE"),
        (["--json", "/no/such/folder/run.json"], 2, "there is no folder '/no/such/folder'"),
        (["--plot", "run.txt"], 2, "plot 'run.txt' must end in .png or .svg or .pdf"),
        (["--texts", "/no/such/texts.txt"], 1, "/no/such/texts.txt: No such file or directory"),
        (["--model", "judge"], 1, "model 'judge' is a reranker"),
        (["--model", "nope"], 1, "model 'nope' is not served"),
    ],
)
def test_what_cannot_work_is_said_before_any_load(run, fake, words: list[str], code: int, message: str) -> None:
    failed = run("bench", fake.address, *words)
    assert (failed.code, failed.out) == (code, "") and message in failed.err
    assert failed.err.startswith("error: ") and failed.err.count("\n") == 1
    assert not fake.requests


@pytest.mark.parametrize(("content", "message"), [("", "holds no text"), ('{"no": 1}\n', "texts.jsonl:1: no field")])
def test_a_file_without_texts_is_refused(run, tmp_path: Path, content: str, message: str) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text(content)
    failed = run("bench", "127.0.0.1:1", "--texts", str(source))
    assert failed.code == 1 and message in failed.err


def test_a_task_that_fails_its_probe_is_named(run, fake, monkeypatch) -> None:
    monkeypatch.setattr(bench, "PROBE", "fail NOT_FOUND")
    failed = run("bench", fake.address, "--task", "retrieval:query", "--rate", "5")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err == "error: a probe of retrieval:query failed: failed: fail NOT_FOUND\n"


def test_a_server_that_is_not_there_is_one_line_and_torch_is_not_loaded() -> None:
    code = (
        "import sys; from embedmux.server.cli import main\n"
        "code = main(['bench', '127.0.0.1:1'])\n"
        "assert code == 1 and not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: no server answers at 127.0.0.1:1 (")


def test_the_command_teaches(run) -> None:
    explained = run("bench", "--help").out
    for words in ("coordinated omission", "embedmux bench --closed 64", "--max-in-flight", "x-embedmux-priority"):
        assert words in explained
