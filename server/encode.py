"""READ FIRST: one request from start to end. Texts in, vectors out; everything else is a room this passes through.

A text that cannot be served gets an error of its own and costs its neighbours nothing (law 4); only what concerns the
whole request is raised.
"""

import asyncio
import time
from dataclasses import dataclass, field, replace

from embedmux.server.admission import Admission, raise_if_whole
from embedmux.server.bridge.port import EnginePort
from embedmux.server.catalog import Catalog
from embedmux.server.config import Limits
from embedmux.server.errors import EmbedmuxError, InvalidRequest, NotFound, Overloaded
from embedmux.server.metrics.ports import TextObserver, UnobservedTexts
from embedmux.server.records import Output, OutputSpec, Route, Space, Tokens
from embedmux.server.requests import EmbedJob, EmbedResult, TokenizedText
from embedmux.server.rows import Row, take_apart
from embedmux.server.text.frames import Frame
from embedmux.server.text.late import LateReader
from embedmux.server.text.tokenizer import Tokenizer

SMALL_TEXTS, LARGE_AT_ONCE = 32, 2
NO_SPARSE = (b"", b"")


@dataclass(slots=True)
class Reading:
    """The texts of a request by their places: where each goes, how it is framed, its tokens, or why it has none."""

    routes: dict[int, Route] = field(default_factory=dict)
    frames: dict[int, Frame] = field(default_factory=dict)
    tokens: dict[int, Tokens] = field(default_factory=dict)
    errors: dict[int, EmbedmuxError] = field(default_factory=dict)
    seconds: float = 0.0  # it took


class Encoder:
    """Conducts requests to one model through catalogue, tokenizer and engine."""

    def __init__(
        self,
        catalog: Catalog,
        tokenizer: Tokenizer,
        engine: EnginePort,
        limits: Limits,
        observer: TextObserver | None = None,
    ) -> None:
        self._catalog = catalog
        self._tokenizer = tokenizer
        self._engine = engine
        self._admission = Admission(limits)
        self._large_turn = asyncio.Semaphore(LARGE_AT_ONCE)
        self._observer = observer or UnobservedTexts()
        late = catalog.contract.late
        self._late = LateReader(late) if late is not None else None

    async def embed(self, job: EmbedJob) -> EmbedResult:
        """One row of bytes per text; raises only what concerns the whole request."""
        try:
            result, reading = await self._embed(job)
        except Overloaded as refusal:
            self._observer.refused(job.terms, refusal.reason)
            raise
        adapters = [_adapter(reading.routes.get(i)) for i in range(len(job.texts))]
        self._observer.answered(job.terms, result, adapters=adapters, reading_s=reading.seconds)
        return result

    async def _embed(self, job: EmbedJob) -> tuple[EmbedResult, Reading]:
        self._check(job)
        output = self._catalog.output(job)
        self._engine.expect(sum(map(len, job.texts)), job.terms)
        if len(job.texts) <= SMALL_TEXTS:
            reading = await self._read(job, output)
        else:  # a few at a time, so that small requests have their turn in between
            async with self._large_turn:
                reading = await self._read(job, output)
        served = list(reading.tokens)
        rows, errors = b"", reading.errors
        if served:
            tokens = list(reading.tokens.values())
            adapters = [reading.routes[index].adapter for index in served]
            rows, failed = await self._engine.embed(tokens, adapters, output, job.terms)
            raise_if_whole(failed.values())
            errors |= {served[position]: error for position, error in failed.items()}
        num_texts = len(job.texts)
        result = EmbedResult(
            vectors=rows,
            encoding=output.encoding,
            dimensions=output.dimensions,
            num_tokens=[len(reading.tokens[i].ids) if i in reading.tokens else 0 for i in range(num_texts)],
            num_tokens_original=[reading.tokens[i].original if i in reading.tokens else 0 for i in range(num_texts)],
            spaces=[_space(reading.routes.get(i)) for i in range(num_texts)],
            errors=errors,
            rendered=[_rendered(reading.frames.get(i)) for i in range(num_texts)] if job.echoes else [],
        )
        if output.outputs != (Output.DENSE,):
            result = self._with_parts(result, rows, reading, output)
        elif errors:
            result = replace(result, vectors=_place(rows, served, errors, num_texts, output))
        return result, reading

    async def tokenize(self, job: EmbedJob) -> list[TokenizedText | EmbedmuxError]:
        """What the model would read of each text, prompt and special tokens included."""
        self._check(job)
        offered = self._catalog.contract.outputs
        outputs = job.outputs if Output.DENSE in offered else offered
        reading = await self._read(job, self._catalog.output(replace(job, outputs=outputs, dimensions=None)))
        return [
            reading.errors[i] if i in reading.errors else self._tokenized(reading.tokens[i], reading.frames[i])
            for i in range(len(job.texts))
        ]

    async def _read(self, job: EmbedJob, output: OutputSpec) -> Reading:
        """Routes, frames and tokens by text, and the errors of the texts that have none."""
        reading, began = Reading(), time.monotonic()
        for index, (text, instruction) in enumerate(zip(job.texts, job.instructions, strict=True)):
            try:
                self._admission.check_text(text, instruction.prompt or instruction.instruction or "")
                route = self._catalog.route(instruction, output)
                reading.frames[index] = self._frame(text, route, output)
                reading.routes[index] = route
            except EmbedmuxError as error:
                raise_if_whole([error])  # without an engine there is no catalogue
                reading.errors[index] = error
        frames = list(reading.frames.values())
        self._admission.check_total((frame.num_characters for frame in frames), "texts")
        found = await self._tokenizer.encode(frames, job.truncate) if frames else []
        for index, result in zip(reading.frames, found, strict=True):
            if not isinstance(result, Tokens):
                reading.errors[index] = result
            elif self._late is not None and Output.TOKENS in output.outputs:
                reading.tokens[index] = self._late.expand(result, reading.routes[index].role)
            else:
                reading.tokens[index] = result
        reading.seconds = time.monotonic() - began
        if job.terms.notes is not None:
            job.terms.notes.span("tokenize", began, began + reading.seconds)
        return reading

    def _frame(self, text: str, route: Route, output: OutputSpec) -> Frame:
        """The text with its prompt, and with the marker of its side where token vectors are wanted."""
        suffix = self._catalog.contract.suffix
        if self._late is None or Output.TOKENS not in output.outputs:
            return Frame(route.prompt, text, suffix)
        if route.role is None and self._late.is_sided:
            raise InvalidRequest(
                "token vectors of queries and of documents are made differently by this model; "
                "set role to query or document"
            )
        return self._late.frame(route.prompt, text, suffix, route.role)

    def _with_parts(self, result: EmbedResult, rows: bytes, reading: Reading, output: OutputSpec) -> EmbedResult:
        """The result with each kind of output on its own; texts with an error have zeros, or nothing."""
        num_texts = len(result.num_tokens)
        dense = [bytes(output.encoding.row_bytes(output.dimensions))] * num_texts
        sparse, token_vectors = [NO_SPARSE] * num_texts, [b""] * num_texts
        parts = take_apart(rows, list(reading.tokens.values()), output)
        for index, row in zip(reading.tokens, parts, strict=True):
            if index not in result.errors:
                dense[index] = row.dense
                sparse[index] = (row.sparse_ids, row.sparse_weights)
                token_vectors[index] = self._token_vectors(row, index, reading, output)
        has_tokens = Output.TOKENS in output.outputs
        return replace(
            result,
            vectors=b"".join(dense) if Output.DENSE in output.outputs else b"",
            sparse=sparse if Output.SPARSE in output.outputs else [],
            token_vectors=token_vectors if has_tokens else [],
            token_dimensions=output.token_dimensions,
        )

    def _token_vectors(self, row: Row, index: int, reading: Reading, output: OutputSpec) -> bytes:
        if self._late is None or Output.TOKENS not in output.outputs:
            return b""
        row_bytes = output.encoding.row_bytes(output.token_dimensions)
        return self._late.select(row.token_vectors, row_bytes, reading.tokens[index], reading.routes[index].role)

    def _tokenized(self, tokens: Tokens, frame: Frame) -> TokenizedText:
        return TokenizedText(tokens.ids, self._tokenizer.pieces(tokens.ids), tokens.original, frame.prefix)

    def _check(self, job: EmbedJob) -> None:
        """What concerns the whole request."""
        self._admission.check_count(len(job.texts), "texts", instead="send several requests or use EmbedStream")
        if job.model and job.model != self._engine.model.name:
            raise NotFound(f"model {job.model!r} is not served here; this server has {self._engine.model.name!r}")


def _place(
    rows: bytes, served: list[int], errors: dict[int, EmbedmuxError], num_texts: int, output: OutputSpec
) -> bytes:
    """One row per text of the request: the engine's for those served, zeros for those with an error."""
    width = output.encoding.row_bytes(output.dimensions)
    placed = bytearray(num_texts * width)
    for position, index in enumerate(served):
        if index not in errors:
            placed[index * width : (index + 1) * width] = rows[position * width : (position + 1) * width]
    return bytes(placed)


def _space(route: Route | None) -> Space | None:
    return route.space if route else None


def _adapter(route: Route | None) -> str:
    return route.adapter_id if route else ""


def _rendered(frame: Frame | None) -> str:
    return frame.rendered if frame else ""
