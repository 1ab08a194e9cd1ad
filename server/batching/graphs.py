"""A backbone as one CUDA graph per token bucket: a batch costs one copy and one launch, whatever its adapters.

Adapter identity is data (segment_slots and the arena's tables), so loading or unloading an adapter captures nothing
anew. Kernels choose their tiles from the model's shapes, so a text has the same bits in every bucket (law 1).
"""

import logging
from collections.abc import Callable

import torch

from embedmux.server.batching.pack import PLAIN, Layout, Packing, to_device
from embedmux.server.batching.staging import Staging
from embedmux.server.packed import Batch, TokenStates

logger = logging.getLogger(__name__)

Forward = Callable[[Batch], TokenStates]
WARM_UPS = 2  # runs before capture, which compile kernels and settle torch's own caches
SMALLEST_BUCKET = 64


def bucket_sizes(max_tokens: int) -> list[int]:
    """Token counts: 64, 96, 128, 192, 256, 384, ... up to the scheduler's budget, so at most a third is left over."""
    sizes, size = [], SMALLEST_BUCKET
    while size < max_tokens:
        sizes += [size, size + size // 2]
        size *= 2
    return [size for size in sizes if size < max_tokens] + [max_tokens]


def bucket_shapes(max_tokens: int, max_texts: int, max_segments: int) -> list[tuple[int, int, int]]:
    """(tokens, texts, segments) of every bucket: a text has a token at least, a segment a text."""
    return [(size, min(size, max_texts), min(size, max_segments)) for size in bucket_sizes(max_tokens)]


class GraphedBackbone:
    """Runs batches through captured graphs; a batch larger than the largest bucket runs uncaptured.

    Only the device thread calls it. The states it returns are overwritten by the next batch of the same bucket.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        max_tokens: int,
        max_texts: int,
        max_segments: int,
        device: torch.device,
        packing: Packing = PLAIN,
    ) -> None:
        self._forward = forward
        self._device = device
        self._packing = packing
        # One bucket's graph runs at a time, so all may use the same memory for what stands between the layers.
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._buckets: list[tuple[Staging, Callable[[], TokenStates]]] = []
        # The largest first: its memory serves the others.
        for tokens, texts, segments in reversed(bucket_shapes(max_tokens, max_texts, max_segments)):
            staging = Staging(max_tokens=tokens, max_texts=texts, max_segments=segments, device=device, packing=packing)
            self._buckets.insert(0, (staging, self._capture(staging)))
        logger.info("captured %d CUDA graphs, up to %d tokens", len(self._buckets), max_tokens)

    def __call__(self, layout: Layout) -> tuple[TokenStates, Batch]:
        """States and the batch on the device; both in the order of the layout, nothing waited for.

        The batch's arrays may be longer than the layout's: pieces behind the layout's last are empty.
        """
        for staging, run in self._buckets:
            if staging.holds(layout):
                batch = staging.fill(layout)
                return run(), batch
        batch = to_device(layout, self._packing, self._device)
        return self._forward(batch), batch

    def _capture(self, staging: Staging) -> Callable[[], TokenStates]:
        """A function that runs the forward pass over the bucket's buffers and returns its states."""
        if self._device.type != "cuda":
            return lambda: self._forward(staging.batch)
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._forward(staging.batch)
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            states = self._forward(staging.batch)

        def replay() -> TokenStates:
            graph.replay()
            return states

        return replay
