"""Broken, hostile and unsupported adapters are refused with a message that names adapter and defect, nothing else."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedmux.server.adapters.directory import list_adapter_folders, read_adapter
from embedmux.server.errors import AdapterRejected
from embedmux.server.records import Adapter

# Tests are not a package (importlib import mode), so the list of defects is loaded by its path.
_spec = importlib.util.spec_from_file_location("hostile_adapters", Path(__file__).with_name("adapters.py"))
assert _spec is not None
assert _spec.loader is not None
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(folder: Path, **options: Any) -> Adapter:
    return read_adapter(folder, hostile.LINEARS, **options)


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(AdapterRejected) as caught:
        read(folder, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert not message.endswith(".")
    assert len(message) < 1000
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "legal-v1"
    path.mkdir()
    return path


def test_the_good_adapter_is_accepted(folder: Path) -> None:
    hostile.write_good(folder)
    assert sorted(read(folder).targets) == sorted(hostile.LINEARS)[:2]


@pytest.mark.parametrize("case", hostile.HOSTILE, ids=lambda case: case.name)
def test_a_broken_adapter_is_refused_by_name(folder: Path, case: Any) -> None:
    case.build(folder)
    message = refusal(folder)
    assert message.startswith("adapter 'legal-v1': ")
    assert case.word in message


@pytest.mark.parametrize(("change", "word"), hostile.CONFIGS["VLLM_REFUSED"], ids=str)
def test_what_vllm_refuses_is_refused(folder: Path, change: dict[str, object], word: str) -> None:
    hostile.config(**change)(folder)
    assert word in refusal(folder)


def test_names_of_hostile_adapters_are_unique() -> None:
    names = [case.name for case in hostile.HOSTILE]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("adapter_id", ["", ".", "..", "a/b", "-a", "a b", "é", "a\n", "a" * 129, "a\0"])
def test_an_id_that_is_no_plain_name_is_refused(folder: Path, adapter_id: str) -> None:
    hostile.write_good(folder)
    assert "id" in refusal(folder, adapter_id=adapter_id)


@pytest.mark.parametrize("name", ["../outside", "..", "../../etc"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    hostile.write_good(tmp_path / "outside")
    assert "outside the adapter root" in refusal(tmp_path / "root" / name, root=tmp_path / "root", adapter_id="x")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "task.json"])
def test_a_file_linked_from_outside_the_root_is_refused(tmp_path: Path, name: str) -> None:
    folder, outside = tmp_path / "root" / "legal", tmp_path / "outside"
    folder.mkdir(parents=True)
    outside.mkdir()
    hostile.write_good(folder)
    hostile.write_good(outside)
    (outside / "task.json").write_text('{"task": "retrieval"}')
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside / name)
    message = refusal(folder, root=tmp_path / "root")
    assert name in message
    assert "outside the adapter root" in message


def test_a_folder_linked_inside_the_root_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "v1").mkdir()
    hostile.write_good(tmp_path / "v1")
    (tmp_path / "latest").symlink_to(tmp_path / "v1")
    assert read(tmp_path / "latest", root=tmp_path).id == "latest"


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "file").write_text("x")
    assert "folder" in refusal(tmp_path / kind)


def test_a_pickle_beside_safetensors_is_left_alone(folder: Path) -> None:
    hostile.write_good(folder)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert read(folder).targets


def test_folders_without_a_config_are_not_listed(tmp_path: Path) -> None:
    for name in ("b", "a", "base"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        hostile.write_good(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert list_adapter_folders(tmp_path) == [tmp_path / "a", tmp_path / "b"]


def read_or_refuse(folder: Path, build: Callable[[Path], None]) -> None:
    """Anything but an adapter or AdapterRejected fails the test."""
    build(folder)
    try:
        read(folder)
    except AdapterRejected as error:
        assert str(error).startswith("adapter 'legal-v1': ")


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([".*", "query", "("]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(list(hostile.CONFIGS["FUZZED_KEYS"])) | st.text(max_size=8)


@FUZZ
@given(changes=st.dictionaries(KEYS, JSON_VALUES, min_size=1, max_size=4))
def test_no_config_breaks_the_reader(tmp_path: Path, changes: dict[str, object]) -> None:
    (tmp_path / "legal-v1").mkdir(exist_ok=True)
    read_or_refuse(tmp_path / "legal-v1", hostile.before(lambda draft: draft.config.update(changes)))


@FUZZ
@given(content=st.binary(max_size=64) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_no_file_content_breaks_the_reader(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "legal-v1").mkdir(exist_ok=True)
    for name in ("task.json", "config_sentence_transformers.json", "calibration.safetensors", "adapter_config.json"):
        read_or_refuse(tmp_path / "legal-v1", hostile.beside(name, content))
        (tmp_path / "legal-v1" / name).unlink()


@FUZZ
@given(data=st.data())
def test_no_damaged_weights_break_the_reader(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / "legal-v1").mkdir(exist_ok=True)

    def damage(raw: bytes) -> bytes:
        # Half of the hits go to the header, which is a tenth of the file but decides how the rest is read.
        places = st.integers(0, len(raw) - 1) | st.integers(0, 500)
        damaged = bytearray(raw)
        for place, bit in data.draw(st.lists(st.tuples(places, st.integers(0, 7)), max_size=4)):
            damaged[place] ^= 1 << bit
        return bytes(damaged[: data.draw(st.just(len(raw)) | places)])

    read_or_refuse(tmp_path / "legal-v1", hostile.raw_weights(damage))
