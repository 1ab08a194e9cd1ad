"""When requests are due: arrivals of a Poisson process, and a thread that calls at these times."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt


def poisson_arrivals(rate: float, seconds: float, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Arrival times from 0 to ``seconds``, ascending, of a Poisson process with ``rate`` arrivals a second.

    Given their number, which is Poisson distributed, such arrivals are independent and uniform.
    """
    return np.sort(generator.uniform(0.0, seconds, generator.poisson(rate * seconds)))


async def call_at(times: Sequence[float], call: Callable[[float], object], *, started: float) -> None:
    """Calls ``call(at)`` on this loop ``at`` seconds after ``started`` (``perf_counter``), for each of ``times``.

    The times do not wait for the calls: those that are due are made at once, late ones too. A thread keeps the times,
    since the loop's own timers round up to whole milliseconds.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    stopped = threading.Event()

    def keep_time() -> None:
        for at in times:
            wait_s = started + at - time.perf_counter()
            if wait_s > 0 and stopped.wait(wait_s):
                return
            loop.call_soon_threadsafe(call, at)
        loop.call_soon_threadsafe(finished.set_result, None)

    thread = threading.Thread(target=keep_time, name="arrivals", daemon=True)
    thread.start()
    try:
        await finished
    finally:
        stopped.set()
        thread.join()
