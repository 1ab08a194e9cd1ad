"""Runs one benchmark: ``make bench NAME=embed``. A table for people, and as the last line one JSON object.

DATA=DIR is a folder of datasets (default: $EMBEDMUX_DATA); LONG=1 adds what takes longer than half an hour;
SAVE=1 keeps the result in bench/results/ with the machine and the versions.
"""

import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    """Runs bench/suites/<name>.py and returns 0 if every figure reached its bar."""
    suites = sorted(path.stem for path in (HERE / "suites").glob("*.py"))
    if len(sys.argv) != 2 or sys.argv[1] not in suites:
        print(f"usage: make bench NAME=<one of {', '.join(suites)}>", file=sys.stderr)
        return 2
    # Only for `harness`: the suites' own names (kernels.py) must not become importable.
    sys.path.insert(0, str(HERE))
    data = os.environ.get("DATA") or os.environ.get("EMBEDMUX_DATA")
    suite = runpy.run_path(str(HERE / "suites" / f"{sys.argv[1]}.py"))
    report = suite["measure"](Path(data) if data else None, is_long=os.environ.get("LONG") == "1")
    if os.environ.get("SAVE") == "1":
        report.save(HERE / "results")
    report.print()
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
