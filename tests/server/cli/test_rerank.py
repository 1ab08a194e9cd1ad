"""``embedmux rerank`` against the fake server: texts, JSONL and plain lines, tables and JSONL, and what fails."""

import io
import json
import sys
from pathlib import Path

import pytest

from embedmux.proto import types_pb2


def records(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_texts_become_a_table_best_first(run, fake) -> None:
    done = run("rerank", "red dogs", "red cats", "dogs", "[b]blue[/b]", "--server", fake.address)
    assert done.code == 0
    rows = [line.split("│")[1:-1] for line in done.out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["1", "2", "0.8808", "2.000", "1", "dogs"],
        ["2", "1", "0.5000", "0.000", "2", "red cats"],
        ["3", "3", "0.1192", "-2.000", "1", "[b]blue[/b]"],
    ]
    assert done.err == "3 of 3 documents by judge, score = sigmoid(logit)\n"


def test_jsonl_goes_in_and_out(run, fake, tmp_path: Path) -> None:
    source = tmp_path / "corpus.jsonl"
    lines = [{"id": "x", "title": "red", "text": "cats"}, {"_id": 7, "title": "red", "text": "dogs " * 9}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--field", "title", "--field", "text", "--jsonl", "--echo", "--instruction", "be strict"]
    done = run("rerank", "dogs", str(source), "--server", fake.address, *words, "--truncate", "end")
    assert done.code == 0 and done.err == ""
    best, other = records(done.out)
    assert (best["rank"], best["id"], best["num_tokens"], best["num_tokens_original"]) == (1, "7", 8, 10)
    assert best["rendered"] == f"be strict|dogs|{best['text']}"
    assert (other["rank"], other["id"], other["text"], other["logit"], other["score"]) == (
        2, "x", "red cats", -2.0, pytest.approx(0.119203, abs=1e-6)
    )  # fmt: skip
    assert fake.rerank_requests[0].truncate == types_pb2.TRUNCATE_END


def test_plain_lines_come_from_files_and_stdin(run, fake, tmp_path: Path, monkeypatch) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_bytes(b"red dogs\r\n\nred \xff\n{not json\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"dogs\n")))
    done = run("rerank", "dogs", str(notes), "-", "a text", "--lines", "--jsonl", "--server", fake.address)
    assert done.code == 3
    assert [(record["id"], record["text"]) for record in records(done.out)] == [
        ("-:1", "dogs"),
        (f"{notes}:1", "red dogs"),
        (f"{notes}:4", "{not json"),
        ("3", "a text"),
    ]
    assert done.err == f"{notes}:3 failed: INVALID_ARGUMENT: not UTF-8: byte 0xff at offset 4\n"


def test_documents_that_fail_are_named_and_the_others_ranked(run, fake, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "fine"}\nnonsense\n{"text": "fail NOT_FOUND"}\n')
    done = run("rerank", "fine", str(source), "--jsonl", "--server", fake.address)
    assert done.code == 3
    assert [record["text"] for record in records(done.out)] == ["fine"]
    bad, missing = done.err.splitlines()
    assert bad.startswith(f"{source}:2 failed: INVALID_ARGUMENT: not JSON")
    assert missing == f"{source}:3 failed: NOT_FOUND: failed: fail NOT_FOUND"


def test_top_n_and_model_are_passed_on(run, fake) -> None:
    done = run("rerank", "a", "a", "b", "a a", "--top-n", "2", "--model", "big", "--server", fake.address)
    assert "2 of 3 documents by big" in done.err
    assert fake.rerank_requests[0].top_n == 2


def test_nothing_readable_asks_no_server(run, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("nonsense\n")
    done = run("rerank", "a", str(source), "--server", "127.0.0.1:1")
    assert (done.code, done.out) == (3, "") and "not JSON" in done.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["q"], 2, "nothing to rank"),
        (["q", "a", "--bad"], 2, "no option '--bad'"),
        (["q", "a", "--bad", "--lines"], 2, "no option '--bad'"),
        (["q", __file__], 2, "is a file, but only .jsonl and .jsonl.gz files are read"),
        (["q", "a", "--top-n", "0"], 2, "--top-n"),
        (["q", "missing.jsonl"], 1, "missing.jsonl: No such file"),
        (["refuse NOT_FOUND", "a"], 1, "refused: refuse NOT_FOUND"),
    ],
)
def test_what_cannot_work_is_said_at_once(run, fake, words: list[str], code: int, message: str) -> None:
    failed = run("rerank", *words, "--server", fake.address)
    assert failed.code == code and failed.out == ""
    assert message in failed.err and failed.err.startswith("error: ")
