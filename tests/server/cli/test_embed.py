"""``embedmux embed`` against the fake server: files in, files out, failed lines listed, order kept."""

import gzip
import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from embedmux.client.blocking import Client
from embedmux.client.texts import Text

parquet = pytest.importorskip("pyarrow.parquet")

GOOD = [{"id": f"doc-{number}", "text": f"text number {number}"} for number in range(150)]


def write_lines(path: Path, records: list[object]) -> str:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return str(path)


def ids_of(file: "safe_open") -> list[str]:
    data, offsets = bytes(file.get_tensor("id_bytes")), file.get_tensor("id_offsets")
    return [data[start:end].decode() for start, end in pairwise(offsets)]


def test_a_file_becomes_safetensors_with_the_vectors_the_client_would_get(run, fake, tmp_path: Path) -> None:
    source, target = write_lines(tmp_path / "in.jsonl", GOOD), tmp_path / "out.safetensors"
    done = run(
        "embed", source, "--server", fake.address, "--task", "retrieval", "--role", "document", "-o", str(target)
    )
    assert (done.code, done.out) == (0, "")
    assert "150 texts" in done.err and str(target) in done.err
    with Client(fake.address) as client:
        expected = client.embed([record["text"] for record in GOOD], task="retrieval", role="document")
    with safe_open(target, framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("vectors"), expected.vectors)
        assert ids_of(file) == [record["id"] for record in GOOD]
        assert not file.get_tensor("status").any() and not file.get_tensor("space").any()
        assert file.get_tensor("num_tokens").tolist() == [3] * 150
        assert json.loads(file.metadata()["spaces"]) == [{"id": "space-retrieval", "calibration": ""}]
        assert file.metadata()["encoding"] == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.safetensors"]


@pytest.mark.parametrize("encoding", ["float16", "bfloat16", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_every_encoding_survives_the_file(run, fake, tmp_path: Path, encoding: str, suffix: str) -> None:
    target = tmp_path / f"out{suffix}"
    words = ["embed", "one", "two", "--server", fake.address, "--encoding", encoding, "--dimensions", "10"]
    assert run(*words, "-o", str(target)).code == 0
    with Client(fake.address) as client:
        expected = client.embed(["one", "two"], encoding=encoding, dimensions=10).vectors
    if suffix == ".parquet":
        stored = parquet.read_table(target)["vector"]
        np.testing.assert_array_equal(np.array(stored.to_pylist(), dtype=expected.dtype), expected)
    elif encoding == "bfloat16":
        torch = pytest.importorskip("torch")
        with safe_open(target, framework="pt") as file:
            assert file.get_tensor("vectors").dtype == torch.bfloat16
            np.testing.assert_array_equal(file.get_tensor("vectors").float().numpy(), expected)
    else:
        with safe_open(target, framework="numpy") as file:
            np.testing.assert_array_equal(file.get_tensor("vectors"), expected)
            assert file.get_tensor("vectors").dtype == expected.dtype


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_bad_lines_are_listed_with_their_place_and_do_not_hurt_the_others(
    run, fake, tmp_path: Path, suffix: str
) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / f"out{suffix}"
    lines = [b'{"text": "good", "id": 7}', b"", b"not json", b'{"text": 3}', b'{"words": "x"}', b'{"text": "\xff"}']
    lines += [
        b'{"text": "a", "role": "passage"}',
        b'{"text": "\\ud800"}',
        b"[1]",
        b'{"text": "fail NOT_FOUND", "id": "f"}',
    ]
    lines += [b'{"text": "also good", "task": "classification"}']
    source.write_bytes(b"\n".join(lines))
    done = run("embed", str(source), "--server", fake.address, "--task", "retrieval", "-o", str(target))
    assert done.code == 3
    assert "10 texts" in done.err and "8 failed" in done.err and "out.errors.jsonl" in done.err
    errors = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [error["line"] for error in errors] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert errors[-1] == {
        "source": str(source), "line": 10, "id": "f", "code": "NOT_FOUND", "message": "failed: fail NOT_FOUND"
    }  # fmt: skip
    assert errors[2]["message"] == "no field 'text'; the line has words"
    status = [0, *[3] * 7, 5, 0]
    if suffix == ".parquet":
        table = parquet.read_table(target)
        assert table["status"].to_pylist() == status
        assert [vector is None for vector in table["vector"].to_pylist()] == [code != 0 for code in status]
        assert table["id"].to_pylist()[0] == "7" and table["space"].to_pylist()[-1] == "space-classification"
        return
    with safe_open(target, framework="numpy") as file:
        assert file.get_tensor("status").tolist() == status
        assert file.get_tensor("space").tolist() == [0, *[-1] * 8, 1]
        assert ids_of(file)[-1] == f"{source}:11"
        with Client(fake.address) as client:
            expected = client.embed(["good", Text("also good", task="classification")], task="retrieval")
        np.testing.assert_array_equal(file.get_tensor("vectors")[[0, 9]], expected.vectors)
        assert not file.get_tensor("vectors")[1:9].any()


def test_a_later_run_without_failures_removes_the_list_of_an_earlier_one(run, fake, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    assert run("embed", "fail INTERNAL", "--server", fake.address, "-o", str(target)).code == 3
    assert (tmp_path / "out.errors.jsonl").exists()
    assert run("embed", "fine", "--server", fake.address, "-o", str(target)).code == 0
    assert not (tmp_path / "out.errors.jsonl").exists()


def test_lines_come_from_stdin_and_from_gzip_and_fields_join(run, fake, tmp_path: Path, monkeypatch) -> None:
    packed = tmp_path / "in.jsonl.gz"
    with gzip.open(packed, "wt") as file:
        file.write('{"_id": "1", "title": "fail", "text": "NOT_FOUND here"}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"title": "a", "text": "b"}\n')))
    done = run("embed", str(packed), "-", "--server", fake.address, "--field", "title", "--field", "text")
    assert done.code == 3
    assert "failed: fail NOT_FOUND here" in done.out and "a b" in done.out
    packed.write_bytes(packed.read_bytes()[:-9])
    broken = run("embed", str(packed), "--server", fake.address)
    assert broken.code == 1 and "no whole gzip file" in broken.err


def test_texts_without_output_make_a_table_of_the_first(run, fake) -> None:
    done = run(
        "embed", *[f"[bold]text {number}" for number in range(30)], "--server", fake.address, "--task", "retrieval"
    )
    assert done.code == 0
    assert "[bold]text 19" in done.out and "[bold]text 20" not in done.out
    assert "10 more are not shown" in done.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "nothing to embed"),
        (["missing.jsonl"], 1, "missing.jsonl: No such file"),
        (["a", "--bad"], 2, "no option '--bad'"),
        ([__file__], 2, "is a file, but only .jsonl and .jsonl.gz files are read"),
        (["a", "-o", "out.csv"], 2, "must end in .safetensors or .parquet"),
        (["a", "-o", "nowhere/out.parquet"], 2, "there is no folder 'nowhere'"),
        (["a", "--model", "large"], 1, "model 'large' is not served; {address} has fake"),
        (["a", "--model", "judge"], 1, "model 'judge' is a reranker; name an embedder of {address}: fake"),
        (["a", "--echo", "-o", "out.parquet"], 2, "--echo shows texts in the table"),
        (["a", "--outputs", "score"], 2, "--outputs"),
    ],
)
def test_what_cannot_work_is_said_at_once(run, fake, words: list[str], code: int, message: str) -> None:
    failed = run("embed", *words, "--server", fake.address)
    assert failed.code == code and failed.out == ""
    assert message.format(address=fake.address) in failed.err and failed.err.startswith("error: ")


def test_a_request_that_is_refused_leaves_no_file(run, fake, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [*GOOD, {"text": "refuse PERMISSION_DENIED"}])
    for name in ("out.safetensors", "out.parquet"):
        failed = run("embed", source, "--server", fake.address, "-o", str(tmp_path / name))
        assert failed.code == 1 and "PERMISSION_DENIED" in failed.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_task_that_is_not_there_fails_before_the_lines_are_read(run, fake, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("embedmux.server.cli.embed.PROBE", "fail NOT_FOUND")
    source = write_lines(tmp_path / "in.jsonl", GOOD)
    failed = run("embed", source, "--server", fake.address, "--task", "sport")
    assert failed.code == 1 and len(fake.requests) == 1
    assert "error: failed: fail NOT_FOUND" in failed.err


def test_a_line_is_at_most_a_window_of_requests_ahead(run, fake, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", GOOD)
    assert run("embed", source, "--server", fake.address, "--batch-size", "7").code == 0
    assert [len(request.texts) for request in fake.requests] == [7] * 21 + [3]


BATCHED = [{"text": "a b"}, "nonsense", {"text": "fail NOT_FOUND"}, {"text": "b b c"}, "more nonsense", {"text": "d"}]


def write_batches(path: Path) -> str:
    """Lines of which every other one is no JSON object; the third batch of two has nothing to send."""
    lines = [*BATCHED[:4], "bad", "worse", *BATCHED[4:]]
    return write_lines(path, lines)


@pytest.mark.parametrize("encoding", ["float32", "bfloat16"])
def test_sparse_weights_and_token_vectors_are_kept_in_safetensors(run, fake, tmp_path: Path, encoding: str) -> None:
    source, target = write_batches(tmp_path / "in.jsonl"), tmp_path / "out.safetensors"
    words = ["--outputs", "sparse", "--outputs", "tokens", "--outputs", "dense", "--batch-size", "2"]
    done = run("embed", source, "--server", fake.address, *words, "--encoding", encoding, "-o", str(target))
    assert done.code == 3
    with Client(fake.address) as client:
        expected = client.embed(["a b", "b b c", "d"], outputs=("dense", "sparse", "tokens"), encoding=encoding)
    sparse, tokens = expected.sparse, expected.tokens
    assert sparse is not None and tokens is not None
    torch = pytest.importorskip("torch")
    with safe_open(target, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert file.metadata()["outputs"] == "sparse,tokens,dense" and file.metadata()["token_dimensions"] == "6"
    assert found["status"].tolist() == [0, 3, 5, 0, 3, 3, 3, 0]
    assert found["sparse_offsets"].tolist() == [0, 2, 2, 2, 4, 4, 4, 4, 5]
    np.testing.assert_array_equal(found["sparse_ids"].to(torch.int64).numpy(), sparse.ids)
    np.testing.assert_array_equal(found["sparse_weights"].numpy(), sparse.weights)
    assert found["token_offsets"].tolist() == [0, 2, 2, 2, 5, 5, 5, 5, 6]
    np.testing.assert_array_equal(found["token_vectors"].float().numpy(), tokens.vectors)
    np.testing.assert_array_equal(found["vectors"].float().numpy()[[0, 3, 7]], expected.vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.errors.jsonl", "out.safetensors"]


def test_only_sparse_weights_leave_the_dense_tensor_out(run, fake, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    words = ["embed", "a b b", "c", "--outputs", "sparse", "--server", fake.address, "-o", str(target)]
    assert run(*words).code == 0
    with safe_open(target, framework="pt") as file:
        assert "vectors" not in file.keys() and "token_vectors" not in file.keys()  # noqa: SIM118
        assert sorted(file.get_tensor("sparse_weights").tolist()) == [1, 1, 2]


def test_sparse_weights_and_token_vectors_are_kept_in_parquet(run, fake, tmp_path: Path) -> None:
    source, target = write_batches(tmp_path / "in.jsonl"), tmp_path / "out.parquet"
    words = ["--outputs", "sparse", "--outputs", "tokens", "--batch-size", "2", "--server", fake.address]
    assert run("embed", source, *words, "-o", str(target)).code == 3
    with Client(fake.address) as client:
        expected = client.embed(["a b", "b b c", "d"], outputs=("sparse", "tokens"))
    sparse, tokens = expected.sparse, expected.tokens
    assert sparse is not None and tokens is not None
    rows = parquet.read_table(target).to_pylist()
    assert "vector" not in rows[0] and [row["status"] for row in rows] == [0, 3, 5, 0, 3, 3, 3, 0]
    for text, place in enumerate((0, 3, 7)):
        assert dict(zip(rows[place]["sparse_ids"], rows[place]["sparse_weights"], strict=True)) == sparse.weights_of(
            text
        )
        np.testing.assert_array_equal(np.array(rows[place]["token_vectors"], np.float32), tokens.rows_of(text))
    assert all(rows[place]["sparse_ids"] == rows[place]["token_vectors"] == [] for place in (1, 2, 4, 5, 6))


def test_the_table_shows_outputs_and_what_the_model_read(run, fake) -> None:
    words = ["--outputs", "dense", "--outputs", "sparse", "--outputs", "tokens", "--echo", "--instruction", "find it"]
    done = run("embed", "a b b c d", "--server", fake.address, *words)
    assert done.code == 0
    assert "'find it|a b b c d'" in done.out and "5 × 6" in done.out
    assert ": 2, " in done.out and "… (4 ids)" in done.out


def test_options_and_lines_bring_instructions_and_forced_sizes(run, fake, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "a", "instruction": "find b"}, {"text": "c"}])
    words = ["--instruction", "find a", "--dimensions", "5", "--force-dimensions"]
    assert run("embed", source, "--server", fake.address, *words).code == 0
    probe, request = fake.requests
    assert [text.text for text in probe.texts] == ["probe"] and probe.force_dimensions
    assert request.force_dimensions and request.dimensions == 5 and not request.echo
    assert [text.instruction.instruction for text in request.texts] == ["find b", "find a"]
