"""The command line against a real server: what a person types, what is printed, and the exit code."""

import json
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from end_to_end_adapters import RECIPES, SPARES
from end_to_end_support import START_S, Served
from safetensors import safe_open

from embedmux.client.blocking import Client
from embedmux.client.texts import Text

LINES = [
    {"id": "query", "text": "how do plants eat", "task": "retrieval", "role": "query"},
    {"id": "document", "text": "Leaves turn light into sugar.", "task": "retrieval", "role": "document"},
    {"id": "plain", "text": "a red boat"},
    {"id": "own", "text": "a red boat", "adapter": "clustering"},
    {"id": "literal", "text": "a red boat", "prompt": "note: "},
]


def embedmux(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """``embedmux`` with the given words, in a process of its own."""
    command = [sys.executable, "-m", "embedmux.server.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False, **options)


def done(*words: str, **options: Any) -> str:
    """What a command prints that must succeed."""
    ended = embedmux(*words, **options)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def refused(code: int, *words: str) -> str:
    """The one line of a command that must fail with ``code``."""
    ended = embedmux(*words)
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith("error: "), ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


def write_lines(path: Path, records: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return str(path)


def as_texts(records: list[dict[str, str]]) -> list[Text]:
    return [Text(**{name: value for name, value in record.items() if name != "id"}) for record in records]


def test_tasks_lists_what_the_server_has(server: Served) -> None:
    shown = done("tasks", "--server", server.address)
    for word in (*RECIPES, "minilm", "384 dimensions", "256 tokens", "'query: '", "'document: '", "retrieval.query"):
        assert word in shown


def test_adapters_are_loaded_listed_and_unloaded(server: Served, client: Client) -> None:
    assert "loaded spare-9: task none, rank 9" in done(
        "adapters", "load", SPARES[0], "--id", "spare-9", "--server", server.address
    )
    listed = done("adapters", "list", "--server", server.address)
    assert all(name in listed for name in (*RECIPES, "spare-9"))
    shown = done("embed", "a red boat", "--adapter", "spare-9", "--server", server.address)
    assert "a red boat" in shown
    assert "unloaded spare-9" in done("adapters", "unload", "spare-9", "--server", server.address)
    assert "spare-9" not in {adapter.id for adapter in client.adapters()}
    assert "'spare-9' is not loaded" in refused(1, "adapters", "unload", "spare-9", "--server", server.address)
    assert "not a readable folder" in refused(1, "adapters", "load", "nowhere", "--server", server.address)


def test_adapter_folders_are_checked_without_a_server(adapter_root: Path, tmp_path: Path) -> None:
    assert "retrieval" in done("adapters", "check", str(adapter_root / "retrieval"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_text("{")
    ended = embedmux("adapters", "check", str(broken))
    assert ended.returncode == 1
    assert "JSON" in ended.stdout + ended.stderr


@pytest.mark.parametrize(("encoding", "dimensions"), [("float32", 384), ("ubinary", 128)])
def test_a_file_becomes_the_vectors_the_client_gets(
    server: Served, client: Client, tmp_path: Path, encoding: Any, dimensions: int
) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", LINES * 40), tmp_path / "out.safetensors"
    words = ["--encoding", encoding, "--dimensions", str(dimensions), "--batch-size", "16", "-o", str(target)]
    done("embed", source, "--server", server.address, *words, "--force-dimensions")
    wanted = client.embed(as_texts(LINES), encoding=encoding, dimensions=dimensions, force_dimensions=True)
    with safe_open(target, framework="numpy") as file:
        facts, vectors = file.metadata(), file.get_tensor("vectors")
        ids, offsets = bytes(file.get_tensor("id_bytes")).decode(), file.get_tensor("id_offsets")
        spaces, status = file.get_tensor("space"), file.get_tensor("status")
        num_tokens = file.get_tensor("num_tokens")
    np.testing.assert_array_equal(vectors, np.tile(wanted.vectors, (40, 1)))
    np.testing.assert_array_equal(num_tokens, np.tile(wanted.num_tokens, 40))
    assert [ids[start:end] for start, end in pairwise(offsets)] == [line["id"] for line in LINES] * 40
    assert not status.any()
    named = json.loads(facts["spaces"])
    assert [named[index]["id"] for index in spaces[:5]] == [space.id for space in wanted.spaces if space]
    assert (facts["encoding"], facts["dimensions"]) == (encoding, str(dimensions))


def test_lines_that_fail_are_listed_and_the_others_are_written(server: Served, client: Client, tmp_path: Path) -> None:
    long = {"id": "long", "text": "river " * 300}
    source = write_lines(tmp_path / "in.jsonl", [LINES[2], long, {"id": "lost", "text": "x", "task": "legal"}])
    target = tmp_path / "out.safetensors"
    ended = embedmux("embed", source, "--server", server.address, "-o", str(target))
    assert ended.returncode == 3, ended.stderr
    failed = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert ["302 tokens" in failed[0]["message"], "'legal'" in failed[1]["message"]] == [True, True]
    with safe_open(target, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("vectors")[0], client.embed("a red boat").vectors[0])
        assert file.get_tensor("space").tolist() == [0, -1, -1]
    both = write_lines(tmp_path / "both.jsonl", [LINES[2], long])
    done("embed", both, "--server", server.address, "--truncate", "end", "-o", str(target))
    with safe_open(target, framework="numpy") as file:
        assert file.get_tensor("num_tokens").tolist() == [5, 256]
        assert file.get_tensor("num_tokens_original").tolist() == [5, 302]


def test_a_wrong_word_fails_in_one_line_before_any_text_is_sent(server: Served, tmp_path: Path) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", LINES), tmp_path / "out.safetensors"
    told = refused(1, "embed", source, "--task", "legal", "-o", str(target), "--server", server.address)
    assert "'legal'" in told
    assert not target.exists()
    assert "no server answers" in refused(1, "tasks", "--server", "127.0.0.1:1")
    assert "did you mean 'embed'" in refused(2, "embd")


def test_doctor_finds_no_fault(server: Served) -> None:
    shown = done("doctor", "--server", server.address)
    assert "no faults" in shown
    assert "is serving" in shown


def test_the_demo_runs_to_its_end(adapter_root: Path) -> None:
    shown = done("demo", "--adapters", str(adapter_root))
    for words in ("13 texts, 4 tasks", "Across spaces a comparison is refused", "stopped cleanly"):
        assert words in shown


def test_a_server_that_cannot_start_says_why_in_one_line(adapter_root: Path, tmp_path: Path) -> None:
    assert "no directory" in refused(1, "serve", "--model", "nowhere").replace("\n", " ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert "cannot be bound" in last_line(embedmux("serve", "--address", address))
    broken = tmp_path / "adapters" / "broken"
    broken.mkdir(parents=True)
    (broken / "adapter_config.json").write_text("{")
    ended = embedmux("serve", "--adapters", str(broken.parent), "--address", "127.0.0.1:0")
    assert ended.returncode == 1
    assert "adapter 'broken'" in last_line(ended)


def last_line(ended: subprocess.CompletedProcess[str]) -> str:
    """The end of a server's log."""
    return ended.stderr.strip().splitlines()[-1]
