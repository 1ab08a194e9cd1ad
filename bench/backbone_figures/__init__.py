"""The figures of ``make bench NAME=backbones``, one file a question. The families stand in tests/models."""

import sys
from pathlib import Path

# The folder itself, never tests/: that would make tests/kernels importable as `kernels`.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "models"))
