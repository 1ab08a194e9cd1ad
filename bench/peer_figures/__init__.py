"""The figures of ``make bench NAME=peers``: our engine in this process, the others in theirs, taking turns."""

import sys
from pathlib import Path

# The builders of full-size random checkpoints stand with the tests of the model families.
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "models"))
