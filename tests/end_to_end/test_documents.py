"""What the README shows works: its Python runs, its commands and targets exist, and every command explains itself."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from end_to_end_support import START_S, Served

from embedmux.server.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SUBCOMMANDS = [("adapters", name) for name in ("check", "list", "load", "unload")]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Python with these words, warnings as errors."""
    command = [sys.executable, "-W", "error", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)


def test_the_readme_shows_python() -> None:
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_of_the_readme_runs(server: Served, block: str) -> None:
    assert "localhost:50051" in block
    ended = run("-c", block.replace("localhost:50051", server.address))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout or "print(" not in block


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), *SUBCOMMANDS], ids=" ".join)
def test_every_command_explains_itself(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help"]) == 0
    assert "Usage: embedmux" in capsys.readouterr().out


def test_commands_and_targets_of_the_readme_exist() -> None:
    shown = "\n".join(code())
    commands = set(re.findall(r"^embedmux ([a-z]+)", shown, re.MULTILINE))
    assert commands
    assert commands <= set(COMMANDS)
    targets = set(re.findall(r"^make ([a-z-]+)", shown, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets
    assert {target for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def code() -> list[str]:
    """Everything the README sets as code, blocks and words."""
    return [block or word for block, word in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", README, re.DOTALL)]
