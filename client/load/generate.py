"""One process's part of a run, on one event loop: an open or a closed loop, then the last answers."""

import asyncio
import time

from embedmux.client.load.answers import Answers
from embedmux.client.load.arrivals import call_at
from embedmux.client.load.plan import Plan
from embedmux.client.load.sender import Sender


async def generate(plan: Plan, sender: Sender, *, started: float, stop: asyncio.Event) -> Answers:
    """The answers to ``plan``, of which second 0 is ``started`` (``perf_counter``). ``stop`` ends it early."""
    sender.started = started
    await asyncio.sleep(max(0.0, started - time.perf_counter()))
    began, cpu_began = time.perf_counter(), time.process_time()
    stopping = asyncio.ensure_future(stop.wait())
    sending = asyncio.ensure_future(open_loop(plan, sender) if plan.rate is not None else closed_loop(plan, sender))
    try:
        await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        cpu_share = (time.process_time() - cpu_began) / max(time.perf_counter() - began, 1e-9)
        ended_s = min(plan.total_s, time.perf_counter() - started)
        if sending.done():
            sending.result()
            finishing = asyncio.ensure_future(sender.finish())
            await asyncio.wait({finishing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sending.cancel()
        stopping.cancel()
        num_cut_off = await sender.cancel()
        await asyncio.gather(sending, stopping, return_exceptions=True)
    if plan.rate is None and stop.is_set():
        num_cut_off += plan.workers
    return sender.tally.answers(num_cut_off=num_cut_off, cpu_share=cpu_share, ended_s=ended_s)


async def open_loop(plan: Plan, sender: Sender) -> None:
    """Sends each request when it is due, whatever became of those before."""
    await call_at(plan.arrivals(), sender.start, started=sender.started)
    # The last arrival is a little before the end, and the measured window is not over before it.
    await asyncio.sleep(max(0.0, sender.started + plan.total_s - time.perf_counter()))


async def closed_loop(plan: Plan, sender: Sender) -> None:
    """Workers that each send a request when the one before was answered."""

    async def work() -> None:
        while (now := time.perf_counter() - sender.started) < plan.total_s:
            await sender.ask(now)

    async with asyncio.TaskGroup() as workers:
        for _ in range(plan.workers):
            workers.create_task(work())
