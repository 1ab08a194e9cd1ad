"""Sends the requests of a plan over its connections and tallies what comes back; no retries: a refusal is a result."""

import asyncio
import itertools
import time
from typing import Any

import grpc
import grpc.aio

from embedmux.client.errors import call_error
from embedmux.client.load.answers import Tally
from embedmux.client.load.plan import Plan
from embedmux.client.options import channel_options
from embedmux.client.stubs import make_stubs
from embedmux.proto import server_pb2

CONNECT_TIMEOUT_S = 10.0


class Sender:
    """The connections of one process. ``in_flight`` requests are under way."""

    def __init__(self, plan: Plan) -> None:
        # Channels with equal options would share one connection without a pool of their own.
        options = [*channel_options(max_attempts=1), ("grpc.use_local_subchannel_pool", 1)]
        self.tally = Tally(measured_from=plan.warm_up_s)
        self.started = 0.0
        self._plan = plan
        self._channels = [grpc.aio.insecure_channel(plan.target, options) for _ in range(plan.connections)]
        self._stubs = [make_stubs(channel) for channel in self._channels]
        self._methods = itertools.cycle([stubs.embedder.Embed for stubs in self._stubs])
        self._requests = plan.requests()
        self._under_way: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Requests that ``start`` sent and that have no answer yet."""
        return len(self._under_way)

    async def connect(self) -> None:
        """Opens every connection. Raises what the server, or its absence, answers."""
        for stubs in self._stubs:
            try:
                await stubs.server.Info(
                    server_pb2.InfoRequest(), timeout=CONNECT_TIMEOUT_S, metadata=self._plan.metadata
                )
            except grpc.RpcError as error:
                raise call_error(error, self._plan.target) from error

    async def close(self) -> None:
        """Cancels what is under way and closes the connections."""
        await self.cancel()
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def start(self, scheduled: float) -> None:
        """Sends the request that is due at ``scheduled``, unless too many are under way, and does not wait for it."""
        if len(self._under_way) >= self._plan.max_in_flight:
            self.tally.not_sent.append(scheduled)
            return
        task = asyncio.ensure_future(self.ask(scheduled))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def ask(self, scheduled: float) -> None:
        """Sends one request and tallies its answer."""
        request, method = next(self._requests), next(self._methods)
        sent = time.perf_counter() - self.started
        try:
            reply: Any = await method(request, timeout=self._plan.timeout_s, metadata=self._plan.metadata)
        except grpc.RpcError as error:
            done = time.perf_counter() - self.started
            self.tally.refused(error, scheduled=scheduled, sent=sent, done=done, num_texts=len(request.texts))
        else:
            done = time.perf_counter() - self.started
            self.tally.answered(reply, scheduled=scheduled, sent=sent, done=done, num_texts=len(request.texts))

    async def finish(self) -> None:
        """Waits for the answers that are due; each comes within the timeout."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def cancel(self) -> int:
        """Gives up what is under way, and returns how many requests that were."""
        tasks = set(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(tasks)
