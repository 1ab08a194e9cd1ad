"""A thousand clients that send and do not read: memory stays bounded, and everybody else is served meanwhile."""

import threading
from pathlib import Path

import grpc
import psutil
import pytest
from end_to_end_support import START_S, WAIT_S, embed_request, serving, wait_for

from embedmux.client.stubs import make_stubs

pytestmark = pytest.mark.slow
STREAMS, CONNECTIONS, TEXTS, REQUESTS = 1000, 8, 64, 40
MOST_GROWTH = 500 << 20  # all that is sent would take 4 GB of answers
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]


def test_streams_that_nobody_reads_hold_a_bounded_part_of_memory(tmp_path: Path) -> None:
    with serving(tmp_path, "--cache-bytes", "100000000") as served, served.client() as client:
        client.embed([f"warm {at}" for at in range(64)])
        front = psutil.Process(served.process.pid)
        before = front.memory_info().rss
        channels = [grpc.insecure_channel(served.address, OPTIONS) for _ in range(CONNECTIONS)]
        ends = threading.Event()
        sent = [0] * STREAMS

        def requests(stream: int) -> object:
            for number in range(REQUESTS):
                sent[stream] += 1
                yield embed_request(
                    *(f"{number} {at}" for at in range(TEXTS))
                )  # computed once, kept: no time goes there
            ends.wait(WAIT_S)

        try:
            calls = [
                make_stubs(channels[stream % CONNECTIONS]).embedder.EmbedStream(requests(stream), timeout=START_S)
                for stream in range(STREAMS)
            ]
            wait_for(lambda: sum(sent) > 3 * STREAMS, "the streams send", START_S)
            for round_of in range(5):
                found = client.embed([f"meanwhile {round_of}"], timeout=START_S)
                assert found.vectors.shape == (1, 384)
            assert front.memory_info().rss - before < MOST_GROWTH
            for call in calls:
                call.cancel()
        finally:
            ends.set()
            for channel in channels:
                channel.close()
        assert client.embed("afterwards", timeout=START_S).vectors.shape == (1, 384)
        assert served.stop() == 0
