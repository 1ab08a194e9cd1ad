"""A process in the peers' environment: loads arrays, builds contenders, times one call at a time.

Line by line, JSON in, JSON out: {"make": class, "arrays": {name: file}, "threads": n}, {"build": class, "options": {}};
{"run": number of the contender} -> {"wall": s, "cpu": s of this thread}; {"result": number, "file": path} saves what
the last run returned. The classes are those of the module that the first argument names.
"""

import importlib
import json
import os
import sys
import time
from typing import Any

# Waiting threads must not spin while the other process is measured; read when OpenMP starts, so before the imports.
os.environ.update({"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "1"})

import numpy as np


def serve() -> None:
    """Answers requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not write between the answers
    contenders = importlib.import_module(sys.argv[1])
    made: list[Any] = []
    last: list[Any] = []
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "make" in request:
            arrays = {name: np.load(path) for name, path in request["arrays"].items()}
            made.append(getattr(contenders, request["make"])(arrays, request["threads"]))
            last.append(None)
            answer["number"] = len(made) - 1
        elif "build" in request:
            made.append(getattr(contenders, request["build"])(**request["options"]))
            last.append(None)
            answer["number"] = len(made) - 1
        elif "run" in request:
            number = request["run"]
            wall, cpu = time.perf_counter(), time.thread_time()
            last[number] = made[number]()
            answer = {"wall": time.perf_counter() - wall, "cpu": time.thread_time() - cpu}
        else:
            np.savez(request["file"], *last[request["result"]])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
