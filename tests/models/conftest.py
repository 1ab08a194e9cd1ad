"""Puts this folder on the path, so that tests and benchmarks import ``model_families``; never ``tests`` itself."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
