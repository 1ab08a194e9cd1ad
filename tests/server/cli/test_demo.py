"""``embedmux demo`` with a stand-in for the server it starts: what it shows, and that nothing is left behind."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from embedmux.server.cli import demo

CLIENT_TESTS = Path(__file__).parents[2] / "client"
SERVES = f"""
import signal, sys
sys.path.insert(0, {str(CLIENT_TESTS)!r})
import fake_server
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})  # before gRPC starts threads, which inherit it
_, server, address = fake_server.start()
with open(sys.argv[sys.argv.index("--port-file") + 1], "w") as file:
    file.write(address.rpartition(":")[2] + "\\n")
signal.sigwait({{signal.SIGTERM}})
server.stop(grace=None).wait()
"""


@pytest.fixture
def child(monkeypatch, tmp_path: Path) -> Callable[[str], None]:
    """Lets the demo start a program of ours as its server."""

    def install(program: str) -> None:
        path = tmp_path / "server"
        path.write_text(f"#!{sys.executable}\n{program}")
        path.chmod(0o755)
        monkeypatch.setattr(demo.sys, "executable", str(path))

    return install


def test_the_demo_shows_each_text_with_its_nearest_and_a_refusal_and_stops(run, child) -> None:
    child(SERVES)
    done = run("demo")
    assert done.code == 0, done.err
    assert f"{len(demo.TEXTS)} texts, 4 tasks" in done.out
    for text in demo.TEXTS:
        assert text.text[:30] in done.out
    assert "a comparison is refused: cannot compare" in done.out
    assert "The server stopped cleanly" in done.out


def test_a_server_that_does_not_start_is_told_with_the_end_of_its_log(run, child) -> None:
    child("import sys; print('loading'); sys.exit('error: no compiled kernel')")
    failed = run("demo")
    assert failed.code == 1
    assert "the server ended with exit code 1; the end of its log:\n" in failed.err
    assert "error: no compiled kernel" in failed.err


def test_a_server_that_stops_badly_is_not_called_clean(run, child) -> None:
    child(SERVES + "sys.exit('lost a batch')")
    failed = run("demo")
    assert failed.code == 1
    assert "exit code 1 after SIGTERM" in failed.err and "lost a batch" in failed.err


def test_every_task_of_the_demo_has_something_to_be_near_to() -> None:
    tasks = [text.task for text in demo.TEXTS]
    assert len(set(tasks)) == 4 and all(tasks.count(task) >= 2 for task in tasks)
    assert {text.role for text in demo.TEXTS if text.task == "retrieval"} == {"query", "document"}
