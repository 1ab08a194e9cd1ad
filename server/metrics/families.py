"""Every family that is exported: its name, its labels, and a help text for whoever reads it on a dashboard."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What a family's values are."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One family; a counter's series are called ``name``_total."""

    kind: Kind
    name: str
    labels: tuple[str, ...]
    help: str


def _counter(name: str, labels: str, text: str) -> Family:
    return Family(Kind.COUNTER, f"embedmux_{name}", tuple(labels.split()), text)


def _gauge(name: str, labels: str, text: str) -> Family:
    return Family(Kind.GAUGE, f"embedmux_{name}", tuple(labels.split()), text)


def _histogram(name: str, labels: str, text: str) -> Family:
    return Family(Kind.HISTOGRAM, f"embedmux_{name}", tuple(labels.split()), text)


# The front: what clients met.
CALL_SECONDS = _histogram(
    "call_seconds", "method code", "From a call's arrival to its answer; its count is the calls. Streams last long."
)
CALLS_IN_FLIGHT = _gauge("calls_in_flight", "method", "Calls that have come and have no answer yet.")
REQUESTS = _counter(
    "requests", "model tenant priority", "Requests that got a result, those within streams too; texts may have failed."
)
REFUSED_REQUESTS = _counter(
    "refused_requests",
    "reason model tenant priority",
    "Requests refused with RESOURCE_EXHAUSTED: the queue is full, the deadline cannot be met, shared memory or calls "
    "are at their limit. A few keep a busy server quick; many ask for another one.",
)
TEXTS = _counter("texts", "model adapter tenant priority", "Texts and documents that got a vector or a score.")
TOKENS = _counter("tokens", "model adapter tenant priority", "Tokens of these texts as the model read them.")
TRUNCATED_TEXTS = _counter(
    "truncated_texts", "model adapter tenant priority", "Of these texts, those that were cut because the client asked."
)
TEXT_ERRORS = _counter(
    "text_errors", "model error", "Texts that failed alone in a request whose other texts were answered, by error."
)
TOKENIZE_SECONDS = _histogram(
    "tokenize_seconds", "model", "From a request to embed to its token ids; grows when --tokenizer-threads are too few."
)

# The engine: what its device did.
QUEUE_SECONDS = _histogram(
    "queue_seconds", "model priority", "How long a text waited for its batch. The first to grow when load does."
)
COMPUTE_SECONDS = _histogram("compute_seconds", "model", "How long a batch was computed.")
BATCH_FILL = _histogram(
    "batch_fill_ratio", "model", "Tokens of a batch by its budget. Near 1: the device is busy; near 0: it has time."
)
PREDICTION_ERROR = _histogram(
    "prediction_error_ratio", "model", "|predicted - actual| / actual of a request's latency, as it was admitted by."
)
ENGINE_TEXTS = _counter("engine_texts", "model", "Texts that were computed; repeats and cached ones are not.")
ENGINE_TOKENS = _counter("engine_tokens", "model", "Tokens that were computed; its rate is the device's throughput.")
ENGINE_BATCHES = _counter("engine_batches", "model", "Batches that were computed.")
HALVED_BATCHES = _counter("halved_batches", "model", "Batches that failed and were halved to find the guilty text.")
DROPPED_TEXTS = _counter(
    "dropped_texts",
    "model reason",
    "Texts in the queue that got no answer of use: expired and cancelled ones were never computed, late ones were, but "
    "after their deadline; failed ones broke the computation.",
)
ENGINE_REFUSED = _counter(
    "engine_refused_requests",
    "model reason",
    "Requests that the queue itself refused; the other refused ones were stopped before a text was read.",
)
COST = _gauge(
    "cost_coefficient_seconds",
    "model term",
    "What the engine has learned a batch costs: seconds a batch, a token, and a token of squared length.",
)
COST_ERROR = _gauge(
    "cost_error_ratio", "model", "|predicted - actual| / actual of a batch's seconds, of late; above 0.3 it guesses."
)
ADAPTERS = _gauge("adapters", "model status", "Adapters in service (ready), and those that wait for their last text.")
ADAPTER_BYTES = _gauge("adapter_used_bytes", "model", "Memory that adapters take.")
ADAPTER_LIMIT = _gauge("adapter_limit_bytes", "model", "Memory that adapters may take (--max-adapter-bytes).")
QUEUED_TOKENS = _gauge("queued_tokens", "", "Tokens that wait, as of the last second.")
QUEUED_TEXTS = _gauge("queued_texts", "", "Texts that wait, as of the last second.")
QUEUE_LIMIT = _gauge("queue_limit_tokens", "", "Tokens of each priority that may wait (--max-queue-tokens).")
BATCH_LIMIT = _gauge("batch_limit_tokens", "", "Token budget of a batch; it falls when one did not fit into memory.")
CACHE_HITS = _counter("cache_hits", "", "Texts answered from kept rows (--cache-bytes).")
CACHE_MISSES = _counter("cache_misses", "", "Texts looked for among the kept rows and not found.")
COALESCED = _counter("coalesced_texts", "", "Texts that were the same as one in flight and computed with it.")
CACHE_BYTES = _gauge("cache_used_bytes", "", "Memory that kept rows take.")
CACHE_LIMIT = _gauge("cache_limit_bytes", "", "Memory that kept rows may take (--cache-bytes); 0 keeps none.")

# The server.
STATE = _gauge("state", "state", "1 for the state the server is in: starting, serving, restarting, draining, stopped.")
RESTARTS = _counter("engine_restarts", "", "How often the engine process was replaced. Any is worth a look at the log.")
BUILD = _gauge("build_info", "version", "Always 1; its label is the version that runs.")
