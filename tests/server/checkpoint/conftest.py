"""Puts the folders beside this file on the path under a name of their own: test folders are no packages."""

import importlib.util
import sys
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("checkpoint_folders", Path(__file__).with_name("checkpoint_folders.py"))
assert SPEC is not None
assert SPEC.loader is not None
MODULE = importlib.util.module_from_spec(SPEC)
sys.modules["checkpoint_folders"] = MODULE
SPEC.loader.exec_module(MODULE)
