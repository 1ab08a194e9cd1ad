"""How much memory loading a model takes over the size of its file, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from harness.report import Report
from model_families import ALL

FAMILY = "qwen3-embedding-0.6b"
# VmHWM is the most memory the process ever held; the baseline is what it holds once everything is imported.
CHILD = """
import sys
from pathlib import Path
from embedmux.server.bridge.local import LocalEngine
from embedmux.server.config import EngineConfig, ModelConfig

def status(key):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

before = status("VmRSS")
engine = LocalEngine(EngineConfig((ModelConfig(sys.argv[1]),), dtype="bfloat16"))
print(status("VmHWM") - before)
engine.close()
"""


def memory_figures(report: Report) -> None:
    """Adds load_memory: 0.6B parameters stored and served in bfloat16."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / FAMILY
        next(family for family in ALL if family.name == FAMILY).build(folder, "full", 4)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        done = subprocess.run([sys.executable, "-c", CHILD, str(folder)], check=True, stdout=subprocess.PIPE, text=True)
        peak = int(done.stdout.split()[-1])
    note = f"{peak / 1e6:.0f} MB for a file of {size / 1e6:.0f} MB"
    report.add("load_memory", peak / size, "x the file", "<= 1.3", note)
