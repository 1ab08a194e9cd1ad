"""A server that answers by rule, without a model: what a text gets is written in the text.

"fail NOT_FOUND"       that text fails with the status
"refuse UNAVAILABLE"   the whole request fails with the status, every time
"overload 2"           the whole request is refused for overload that many times, with push-back, then served
"slow 0.5"             the answer comes that many seconds later, or when the caller is gone
anything else          a vector drawn from the hash of task, role and text; the space is the task's name

Of its words, each has a row of token vectors, and each distinct one a sparse id with the number of its occurrences. A
document is scored by the share of its words that the query has.
"""

import hashlib
import math
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from embedmux.proto import (
    adapters_pb2,
    adapters_pb2_grpc,
    embed_pb2,
    embed_pb2_grpc,
    rerank_pb2,
    rerank_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
    types_pb2,
)

DIMENSIONS = 12
TOKEN_DIMENSIONS = 6
PUSH_BACK_MS = 200
MAX_TOKENS = 8


SERVICERS = (
    embed_pb2_grpc.EmbedderServicer,
    rerank_pb2_grpc.RerankerServicer,
    adapters_pb2_grpc.AdaptersServicer,
    server_pb2_grpc.ServerServicer,
)


@dataclass
class FakeServer(*SERVICERS):
    """The servicers, and what they saw."""

    requests: list[embed_pb2.EmbedRequest] = field(default_factory=list)
    rerank_requests: list[rerank_pb2.RerankRequest] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    max_under_way: int = 0
    under_way: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    metadata: list[dict[str, str]] = field(default_factory=list)
    address: str = ""
    adapter_ids: list[str] = field(default_factory=lambda: ["retrieval", "classification"])

    def Embed(self, request, context):
        gone = threading.Event()
        context.add_callback(gone.set)
        with self.changed:
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.under_way += 1
            self.max_under_way = max(self.max_under_way, self.under_way)
            self.changed.notify_all()
        failure = self.failure(request, gone)
        with self.changed:
            self.under_way -= 1
            self.changed.notify_all()
        if failure is None:
            return self.reply(request)
        if failure.retry_after_ms:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(failure.retry_after_ms)),))
        return context.abort(status(failure.code), failure.message)

    def EmbedStream(self, request_iterator, context) -> Iterator[embed_pb2.EmbedResponse]:
        for request in request_iterator:
            with self.changed:
                self.requests.append(request)
            failure = self.failure(request, threading.Event())
            yield embed_pb2.EmbedResponse(failure=failure) if failure else self.reply(request)

    def Tokenize(self, request, context):
        reply = embed_pb2.TokenizeResponse()
        for index, text in enumerate(request.texts):
            words = text.text.split()
            if words[0] == "fail":
                reply.errors.add(index=index, code=status(words[1]).value[0], message=f"failed: {text.text}")
                reply.texts.add()
                continue
            reply.texts.add(ids=range(len(words)), tokens=words, num_tokens_original=len(words), prompt="Query: ")
        return reply

    def Rerank(self, request, context):
        self.rerank_requests.append(request)
        verb, _, argument = request.query.partition(" ")
        if verb == "refuse" or (verb == "overload" and len(self.rerank_requests) <= int(argument)):
            code = "RESOURCE_EXHAUSTED" if verb == "overload" else argument
            context.abort(status(code), f"refused: {request.query}")
        reply = rerank_pb2.RerankResponse(model=request.model or "judge", activation="sigmoid")
        wanted = set(request.query.split())
        for index, document in enumerate(request.documents):
            words = document.split()
            if words[:1] == ["fail"]:
                reply.errors.add(index=index, code=status(words[1]).value[0], message=f"failed: {document}")
                continue
            logit = 4 * sum(word in wanted for word in words) / len(words) - 2
            reply.results.add(
                index=index,
                logit=logit,
                score=1 / (1 + math.exp(-logit)),
                num_tokens=min(len(words), MAX_TOKENS),
                num_tokens_original=len(words),
                rendered=f"{request.instruction}|{request.query}|{document}" if request.echo else "",
            )
        reply.results.sort(key=lambda found: (-found.score, found.index))
        del reply.results[request.top_n or len(reply.results) :]
        return reply

    def Load(self, request, context):
        if "broken" in request.path:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"adapter {request.path!r}: target 'query' has rank 96")
        self.adapter_ids.append(request.id or request.path)
        return adapter(self.adapter_ids[-1], request.model)

    def Unload(self, request, context):
        if request.id not in self.adapter_ids or request.model not in ("", "fake"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"adapter {request.id!r} is not loaded")
        self.adapter_ids.remove(request.id)
        return adapters_pb2.UnloadAdapterResponse()

    def List(self, request, context):
        ids = self.adapter_ids if request.model in ("", "fake") else []
        return adapters_pb2.ListAdaptersResponse(adapters=[adapter(id, "fake") for id in ids])

    def Info(self, request, context):
        tasks = [
            server_pb2.TaskInfo(
                name=name, adapter=name, query_prompt=query, document_prompt="Document: ", space=f"space-{name}"
            )
            for name, query in (("retrieval", "Query: "), ("classification", "Document: "))
        ]
        limits = server_pb2.Limits(max_texts=256)
        return server_pb2.InfoResponse(
            version="1.2.3", state="serving", models=[fake_model(tasks), JUDGE], limits=limits
        )

    def wait_under_way(self, count: int) -> bool:
        """Whether ``count`` calls were under way at one moment of the next five seconds."""
        with self.changed:
            return self.changed.wait_for(lambda: self.under_way == count, timeout=5)

    def failure(self, request: embed_pb2.EmbedRequest, gone: threading.Event) -> types_pb2.Failure | None:
        for text in request.texts:
            verb, _, argument = text.text.partition(" ")
            if verb == "slow":
                gone.wait(float(argument))
            if verb == "refuse":
                return types_pb2.Failure(code=status(argument).value[0], message=f"refused: {text.text}")
            if verb == "overload" and self.refusals[text.text] < int(argument):
                self.refusals[text.text] += 1
                code = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
                return types_pb2.Failure(code=code, message="the queue is full", retry_after_ms=PUSH_BACK_MS)
            if verb == "restart" and self.refusals[text.text] < int(argument):
                self.refusals[text.text] += 1
                return types_pb2.Failure(code=grpc.StatusCode.UNAVAILABLE.value[0], message="restarting")
        return None

    def reply(self, request: embed_pb2.EmbedRequest) -> embed_pb2.EmbedResponse:
        reply = embed_pb2.EmbedResponse(request_id=request.request_id)
        outputs = set(request.outputs) or {types_pb2.OUTPUT_DENSE}
        reply.dimensions = (request.dimensions or DIMENSIONS) if types_pb2.OUTPUT_DENSE in outputs else 0
        reply.encoding = request.encoding or types_pb2.ENCODING_FLOAT32
        rows = []
        spaces: list[str] = []
        for index, text in enumerate(request.texts):
            instruction = text.instruction if text.HasField("instruction") else request.instruction
            row = encode(vector(text.text, instruction, reply.dimensions), reply.encoding)
            words = text.text.split()
            is_bad = words[:1] == ["fail"]
            served = [] if is_bad else words
            if types_pb2.OUTPUT_SPARSE in outputs:
                counts = Counter(map(word_id, served))
                reply.sparse_lengths.append(len(counts))
                reply.sparse_ids += np.array(list(counts), "<u4").tobytes()
                reply.sparse_weights += np.array(list(counts.values()), "<f4").tobytes()
            if types_pb2.OUTPUT_TOKENS in outputs:
                reply.token_dimensions = TOKEN_DIMENSIONS
                reply.token_rows.append(len(served))
                rows_of = (vector(word, types_pb2.Instruction(), TOKEN_DIMENSIONS) for word in served)
                reply.token_vectors += b"".join(encode(token, reply.encoding) for token in rows_of)
            if request.echo:
                reply.rendered.append("" if is_bad else f"{instruction.instruction}|{text.text}")
            if is_bad:
                reply.errors.add(index=index, code=status(words[1]).value[0], message=f"failed: {text.text}")
                row = bytes(len(row))
            if instruction.task not in spaces:
                spaces.append(instruction.task)
            rows.append(row)
            reply.space_index.append(spaces.index(instruction.task))
            reply.num_tokens_original.append(len(words))
            reply.num_tokens.append(min(len(words), MAX_TOKENS))
        calibration = "ranges-1" if reply.encoding in (types_pb2.ENCODING_INT8, types_pb2.ENCODING_UINT8) else ""
        reply.spaces.extend(types_pb2.Space(id=f"space-{task}", calibration=calibration) for task in spaces)
        reply.vectors = b"".join(rows)
        reply.row_bytes = len(rows[0])
        return reply


def fake_model(tasks: list[server_pb2.TaskInfo]) -> server_pb2.ModelInfo:
    return server_pb2.ModelInfo(
        name="fake",
        dimensions=DIMENSIONS,
        max_tokens=MAX_TOKENS,
        tasks=tasks,
        family="fakes",
        kind="embedder",
        sizes=[DIMENSIONS, 4],
        any_size_from=8,
        outputs=[types_pb2.OUTPUT_DENSE, types_pb2.OUTPUT_SPARSE, types_pb2.OUTPUT_TOKENS],
        template="Instruct: {instruction}\nQuery:",
        default_instruction="find it",
        notes=["answers by rule"],
    )


JUDGE = server_pb2.ModelInfo(
    name="judge", family="judges", kind="reranker", max_tokens=MAX_TOKENS, activation="sigmoid"
)


def word_id(word: str) -> int:
    """The token id of a word."""
    return zlib.crc32(word.encode()) % 1000


def status(code: int | str) -> grpc.StatusCode:
    """A status by name or number."""
    return next(member for member in grpc.StatusCode if code in (member.name, member.value[0]))


def adapter(id: str, model: str) -> adapters_pb2.AdapterInfo:
    facts = {"id": id, "digest": "ab" * 32, "task": id, "prompts": {"query": "Query: "}, "max_rank": 8}
    return adapters_pb2.AdapterInfo(
        **facts, num_targets=36, num_bytes=1_474_560, model=model or "fake", role=types_pb2.ROLE_QUERY
    )


def vector(text: str, instruction: types_pb2.Instruction, dimensions: int) -> np.ndarray:
    """A unit vector that depends on task, role and text alone."""
    key = f"{instruction.task}/{instruction.role}/{text}".encode()
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    values = np.random.default_rng(seed).standard_normal(dimensions)
    return (values / max(np.linalg.norm(values), 1e-9)).astype(np.float32)


def encode(row: np.ndarray, encoding: int) -> bytes:
    """The reference the client's decoder is measured against; bfloat16 by cutting bits."""
    codes = np.clip(np.round(row * 127), -128, 127)
    bits = np.packbits(row > 0)
    return {
        types_pb2.ENCODING_FLOAT32: lambda: row.astype("<f4").tobytes(),
        types_pb2.ENCODING_FLOAT16: lambda: row.astype("<f2").tobytes(),
        types_pb2.ENCODING_BFLOAT16: lambda: (row.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes(),
        types_pb2.ENCODING_INT8: lambda: codes.astype(np.int8).tobytes(),
        types_pb2.ENCODING_UINT8: lambda: (codes + 128).astype(np.uint8).tobytes(),
        types_pb2.ENCODING_BINARY: lambda: (bits.astype(np.int16) - 128).astype(np.int8).tobytes(),
        types_pb2.ENCODING_UBINARY: lambda: bits.tobytes(),
    }[encoding]()


def start() -> tuple[FakeServer, grpc.Server, str]:
    """A running fake, its gRPC server and its address."""
    fake = FakeServer()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    embed_pb2_grpc.add_EmbedderServicer_to_server(fake, server)
    rerank_pb2_grpc.add_RerankerServicer_to_server(fake, server)
    adapters_pb2_grpc.add_AdaptersServicer_to_server(fake, server)
    server_pb2_grpc.add_ServerServicer_to_server(fake, server)
    states = health.HealthServicer()
    states.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return fake, server, f"127.0.0.1:{port}"
