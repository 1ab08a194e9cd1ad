"""The structure is a promise: who may import whom, where files stand, how long they may be, which links hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "server", "proto", "client", "training")
MAX_LINES = 300
SOURCES = sorted(
    path
    for room in (*ROOMS, "bench", "tests")
    for path in (ROOT / room).rglob("*.py")
    if not re.search(r"_pb2(_grpc)?\.py$", path.name)
)
SERVER = [path for path in SOURCES if path.is_relative_to(ROOT / "server")]

# Which modules a library may be imported from; paths are relative to the root.
ONLY_IN = {
    "grpc": ("server/rpc/", "client/", "server/cli/", "proto/"),
    "grpc_health": ("server/rpc/", "client/"),
    "grpc_reflection": ("server/rpc/",),
    "opentelemetry": ("server/rpc/",),
    "triton": ("kernels/",),
    "tokenizers": ("server/text/",),
    "prometheus_client": ("server/metrics/", "server/cli/"),
    "transformers": ("training/",),
    "sentence_transformers": ("training/",),
    "peft": ("training/",),
}
NEVER_TORCH = (
    "server/rpc/", "server/text/", "server/checkpoint/", "client/", "server/cli/serve.py",
    "server/batching/scheduler.py", "server/app.py", "server/front.py", "server/encode.py", "server/rerank.py",
    "server/several.py", "server/scorers/", "server/catalog.py", "server/bridge/supervisor.py", "server/bridge/link.py",
    "server/bridge/linked.py", "server/bridge/board.py", "server/beside.py", "server/batching/lines.py",
    "server/metrics/",
)  # fmt: skip
# Lower rank may import higher rank only; rooms of one rank do not import each other.
RANKS = {
    "cli": 0, "app": 1, "beside": 2, "front": 3, "rpc": 4, "desk": 4, "encode": 5, "rerank": 5, "several": 5,
    "scorers": 6, "catalog": 6, "instructions": 6, "runtime": 6, "loaded": 6, "bridge": 6, "check": 6, "metrics": 6,
    "admission": 7, "rows": 7, "text": 7, "adapters": 7, "batching": 7, "outputs": 7, "heads": 8, "backbones": 9,
    "checkpoint": 10,
}  # fmt: skip
EVERYONE = {
    "errors", "config", "logs", "records", "packed", "requests", "contract", "facts", "tasks", "spaces", "models",
    "free_list",
}  # fmt: skip


def imports_of(path: Path) -> list[str]:
    """Dotted names a file imports at run time (not under TYPE_CHECKING)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            found.append(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").glob("*")), ids=relative)
def test_kernel_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", [p for p in SOURCES if relative(p).startswith(ROOMS)], ids=relative)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    name = relative(path)
    for imported in imports_of(path):
        top = imported.split(".")[0]
        if top in ONLY_IN:
            assert name.startswith(ONLY_IN[top]), f"{name} imports {imported}; {top} belongs to {ONLY_IN[top]}"
        if name.startswith(NEVER_TORCH):
            assert top != "torch", f"{name} imports torch"


@pytest.mark.parametrize("path", SERVER, ids=relative)
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT / "server").parts[0].removesuffix(".py")
    if room in EVERYONE:
        allowed = EVERYONE
        for imported in imports_of(path):
            if imported.startswith("embedmux."):
                assert imported.split(".")[2] in allowed, f"{relative(path)} imports {imported}"
        return
    assert room in RANKS, f"{relative(path)}: give the room {room!r} a rank in this test"
    for imported in imports_of(path):
        if not imported.startswith("embedmux.server."):
            continue
        other = imported.split(".")[2]
        if other in EVERYONE or other == room:
            continue
        # The command line reaches into the rooms it reports on; rank 6 hands its neighbours what they need.
        same_rank = RANKS[other] == RANKS[room] == 6
        assert RANKS[other] > RANKS[room] or same_rank, f"{relative(path)} imports {imported}"


def test_rooms_have_no_init_and_folders_inside_have_one() -> None:
    for room in ROOMS:
        assert not (ROOT / room / "__init__.py").exists(), f"{room}/__init__.py would collide with other packages"
        folders = {path.parent for path in (ROOT / room).rglob("*.py")} - {ROOT / room}
        for folder in folders:
            assert (folder / "__init__.py").exists(), f"{relative(folder)} needs an __init__.py to be installed"


def test_every_op_has_its_files() -> None:
    for folder in sorted(path.parent for path in (ROOT / "kernels").glob("*/__init__.py")):
        for name in ("reference.py", "cases.py"):
            assert (folder / name).exists(), f"{relative(folder)} has no {name}"
        assert (ROOT / "csrc" / f"{folder.name}.cpp").exists(), f"csrc/{folder.name}.cpp is missing"


def test_client_front_and_supervisor_do_not_load_torch() -> None:
    modules = [
        "embedmux.client.blocking", "embedmux.client.aio", "embedmux.server.app", "embedmux.server.encode",
        "embedmux.server.bridge.supervisor", "embedmux.server.cli", "embedmux.server.cli.serve",
    ]  # fmt: skip
    lines = "\n".join(f"import {module}; assert 'torch' not in sys.modules, {module!r}" for module in modules)
    subprocess.run([sys.executable, "-c", f"import sys\n{lines}"], check=True)


def test_links_in_the_papers_hold() -> None:
    for paper in sorted(ROOT.glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", paper.read_text(encoding="utf-8")):
            if not re.match(r"\w+:", target):
                assert (paper.parent / target).exists(), f"{paper.name} links to {target}"


def test_architecture_names_only_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:server|kernels|csrc|client|training|proto|bench|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"ARCHITECTURE.md names {name}"
