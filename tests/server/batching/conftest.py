"""Makes batching_jobs.py, beside this file, importable: test folders are no packages."""

import importlib.util
import sys
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("batching_jobs", Path(__file__).with_name("batching_jobs.py"))
assert SPEC is not None
assert SPEC.loader is not None
MODULE = importlib.util.module_from_spec(SPEC)
sys.modules["batching_jobs"] = MODULE
SPEC.loader.exec_module(MODULE)
