"""The figures of ``make bench NAME=backbones``, one file a question. The families stand in tests/models."""

import os
import sys
from pathlib import Path

# The folder itself, never tests/: that would make tests/kernels importable as `kernels`.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "models"))

# The references are transformers' models, a hundred times over; what they say while loading hides what is measured.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
