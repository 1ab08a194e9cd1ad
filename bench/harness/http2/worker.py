"""The generator's own process: plans come in through standard input, records go out through standard output.

Each message is a pickle: (target, plan) is answered by None once the connections stand, then any message starts the
run, which is answered by its Record. An error is answered in place of either.
"""

import pickle
import sys
from typing import BinaryIO

from harness.http2.frames import ProtocolError
from harness.http2.run import Run


def main() -> None:
    """Serves plans until standard input ends."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            target, plan = pickle.load(source)
        except EOFError:
            return
        try:
            run = Run(target, plan)
            _answer(sink, None)
            pickle.load(source)
            run.go()
            _answer(sink, run.record)
        except (OSError, ValueError, ProtocolError) as error:
            _answer(sink, error)


def _answer(sink: BinaryIO, answer: object) -> None:
    pickle.dump(answer, sink, pickle.HIGHEST_PROTOCOL)
    sink.flush()


if __name__ == "__main__":
    main()
