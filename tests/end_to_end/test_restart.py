"""After the engine was replaced, exactly what was in service is in service: nothing more, nothing else in its name."""

import shutil
from pathlib import Path

import pytest
from end_to_end_adapters import RECIPES, SPARES
from end_to_end_support import START_S, WAIT_S, serving, wait_for

pytestmark = pytest.mark.slow


def test_folders_that_changed_meanwhile_neither_enter_nor_stop_the_service(tmp_path: Path, adapter_root: Path) -> None:
    root = tmp_path / "adapters"
    for name in (*RECIPES, "spare"):  # other tests leave broken folders in the shared root
        shutil.copytree(adapter_root / name, root / name)
    shutil.copytree(root / "clustering", root / "swapped")
    with serving(tmp_path / "server", "--adapters", str(root)) as served, served.client() as client:
        before = {adapter.id: adapter.digest for adapter in client.adapters()}
        wanted = client.embed("a red boat", adapter="classification").vectors
        shutil.copytree(root / "clustering", root / "uninvited")
        (root / "broken").mkdir()
        (root / "broken" / "adapter_config.json").write_text("{", encoding="utf-8")
        shutil.rmtree(root / "swapped")
        shutil.copytree(root / SPARES[0], root / "swapped")
        engine = served.engine()
        assert engine is not None
        engine.kill()
        wait_for(lambda: not client.is_serving(), "the loss is noticed", WAIT_S)
        client.wait_until_serving(timeout=START_S)
        after = {adapter.id: adapter.digest for adapter in client.adapters()}
        assert after == {name: digest for name, digest in before.items() if name != "swapped"}
        assert client.embed("a red boat", adapter="classification").vectors.tobytes() == wanted.tobytes()
        assert served.stop() == 0
