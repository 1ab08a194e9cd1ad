"""tasks, adapters and doctor against the fake server, and adapter folders without one."""

import pytest

from embedmux.server.adapters import directory
from embedmux.server.cli import adapters_check, doctor
from embedmux.server.errors import AdapterRejected
from embedmux.server.records import Adapter


def test_tasks_shows_prompts_with_their_spaces(run, fake) -> None:
    done = run("tasks", "--server", fake.address)
    assert done.code == 0
    assert "fake" in done.out and "12 dimensions" in done.out
    assert "'Query: '" in done.out and "classification" in done.out


def test_tasks_tells_each_model_and_what_it_can_do(run, fake) -> None:
    embedder, judge = run("tasks", "--server", fake.address).out.split("\n\n")
    assert embedder.startswith("fake  embedder of family fakes · 12 dimensions (or 4, any from 8) · 8 tokens")
    assert "dense and sparse and tokens" in embedder
    assert r"takes instructions: 'Instruct: {instruction}\nQuery:'" in embedder
    assert "default instruction: 'find it'" in embedder and "note: answers by rule" in embedder
    assert judge.startswith("judge  reranker of family judges · score = sigmoid(logit) · 8 tokens")
    assert "dimensions" not in judge and "adapter" not in judge


def test_adapters_are_listed_loaded_and_unloaded(run, fake) -> None:
    listed = run("adapters", "list", "--server", fake.address).out
    assert "1.5 MB" in listed and "│ fake  │ retrieval, query" in listed
    assert "has no adapters" in run("adapters", "list", "--model", "judge", "--server", fake.address).out
    loaded = run("adapters", "load", "legal/v2", "--id", "legal", "--server", fake.address)
    assert loaded.code == 0 and loaded.out.startswith("loaded legal: task legal, rank 8, 36 linears")
    of_other = run("adapters", "unload", "legal", "--model", "judge", "--server", fake.address)
    assert of_other.code == 1 and "not loaded" in of_other.err
    assert run("adapters", "unload", "legal", "--server", fake.address).out == "unloaded legal\n"
    again = run("adapters", "unload", "legal", "--server", fake.address)
    assert (again.code, again.err) == (1, "error: adapter 'legal' is not loaded\n")
    refused = run("adapters", "load", "broken", "--server", fake.address)
    assert refused.code == 1 and "rank 96" in refused.err


@pytest.fixture
def reader(monkeypatch, tmp_path):
    """Adapters are read by rule: a folder called bad is refused."""

    def read(path, targets, *, root):
        assert targets == {"query": (4, 4)} and root is not None
        if path.name == "bad":
            raise AdapterRejected("adapter 'bad': target 'query' has rank 512, the limit is 256")
        return Adapter(path.name, "ab", str(path), "retrieval", {}, {"query": None}, {}, max_rank=8, num_bytes=2048)

    monkeypatch.setattr(adapters_check, "read_adapter", read)
    monkeypatch.setattr(adapters_check, "model_targets", lambda folder: {"query": (4, 4)})
    monkeypatch.setattr(adapters_check, "find_model", lambda name: tmp_path)
    assert directory.read_adapter is not read
    return tmp_path


def test_check_reports_every_folder_and_fails_if_one_is_refused(run, reader) -> None:
    for name in ("good", "bad"):
        (reader / name).mkdir()
    done = run("adapters", "check", str(reader))
    assert done.code == 1
    assert done.out.splitlines() == [
        "refused adapter 'bad': target 'query' has rank 512, the limit is 256",
        "ok      good: task retrieval, rank 8, 1 linears, 2.0 kB",
    ]


def test_check_takes_one_adapter_too(run, reader) -> None:
    (reader / "adapter_config.json").write_text("{}")
    assert run("adapters", "check", str(reader)).code == 0


def test_check_refuses_a_folder_with_nothing_in_it(run, reader) -> None:
    assert "holds neither adapter_config.json nor adapter folders" in run("adapters", "check", str(reader)).err
    assert "is no folder" in run("adapters", "check", str(reader / "gone")).err


def test_doctor_looks_at_everything_and_asks_the_server(run, fake, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "kernels", lambda: iter([doctor.Finding("torch", "ok", "fine")]))
    done = run("doctor", "--server", fake.address)
    assert done.code == 0 and "no faults" in done.out
    for word in ("Python", "packages", "processor", "default model", "version 1.2.3", "serving: fake (2 tasks"):
        assert word in done.out


def test_doctor_finds_a_server_that_does_not_answer(run, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "kernels", lambda: iter(()))
    done = run("doctor", "--server", "127.0.0.1:1")
    assert done.code == 1 and "no server answers" in done.out and "1 fault" in done.out


def test_doctor_says_how_to_build_what_is_missing(monkeypatch) -> None:
    ops = type("Ops", (), {"HAS_EXTENSION": False})
    torch = type("Torch", (), {"__version__": "2", "get_num_threads": lambda: 2})
    torch.cuda = type("Cuda", (), {"is_available": lambda: False})
    monkeypatch.setattr(doctor.importlib, "import_module", {"torch": torch, "embedmux.kernels.ops": ops}.get)
    *_, last = doctor.kernels()
    assert last.state == "fault" and "--allow-reference" in last.fix
