"""READ FIRST: one request from start to end. Texts in, vectors out; everything else is a room this passes through.

A text that cannot be served gets an error of its own and costs its neighbours nothing (law 4); only what concerns the
whole request is raised.
"""

from embedmux.server.bridge.port import EnginePort
from embedmux.server.catalog import Catalog
from embedmux.server.config import Limits
from embedmux.server.errors import DeadlineExceeded, EmbedmuxError, InvalidRequest, NotFound, Overloaded, Unavailable
from embedmux.server.records import OutputSpec, Route, Space, Tokens
from embedmux.server.requests import EmbedJob, EmbedResult, TokenizedText
from embedmux.server.text.tokenizer import Tokenizer

# The queue takes or refuses the texts of a request together, and they share a deadline: a client is told by the status
# of the call, which it knows to try again, and not by one error for each text.
WHOLE_REQUEST = (Overloaded, Unavailable, DeadlineExceeded)


class Encoder:
    """Conducts requests through catalogue, tokenizer and engine."""

    def __init__(self, catalog: Catalog, tokenizer: Tokenizer, engine: EnginePort, limits: Limits) -> None:
        self._catalog = catalog
        self._tokenizer = tokenizer
        self._engine = engine
        self._limits = limits

    async def embed(self, job: EmbedJob) -> EmbedResult:
        """One row of bytes per text; raises only what concerns the whole request."""
        self._check(job)
        output = OutputSpec(self._catalog.dimensions(job.dimensions), job.encoding)
        routes, tokens, errors = await self._read(job, output)
        served = [index for index in range(len(job.texts)) if index not in errors]
        rows = b""
        if served:
            ids = [tokens[index].ids for index in served]
            adapters = [routes[index].adapter for index in served]
            rows, failed = await self._engine.embed(ids, adapters, output, job.deadline)
            for error in failed.values():
                if isinstance(error, WHOLE_REQUEST):
                    raise error
            errors |= {served[position]: error for position, error in failed.items()}
        return EmbedResult(
            vectors=_place(rows, served, errors, len(job.texts), output),
            encoding=output.encoding,
            dimensions=output.dimensions,
            num_tokens=[len(tokens[i].ids) if i in tokens else 0 for i in range(len(job.texts))],
            num_tokens_original=[tokens[i].original if i in tokens else 0 for i in range(len(job.texts))],
            spaces=[_space(routes.get(i)) for i in range(len(job.texts))],
            errors=errors,
        )

    async def tokenize(self, job: EmbedJob) -> list[TokenizedText | EmbedmuxError]:
        """What the model would read of each text, prompt and special tokens included."""
        self._check(job)
        output = OutputSpec(self._catalog.dimensions(None), job.encoding)
        routes, tokens, errors = await self._read(job, output)
        return [
            errors[i]
            if i in errors
            else TokenizedText(
                tokens[i].ids, self._tokenizer.pieces(tokens[i].ids), tokens[i].original, routes[i].prompt
            )
            for i in range(len(job.texts))
        ]

    async def _read(
        self, job: EmbedJob, output: OutputSpec
    ) -> tuple[dict[int, Route], dict[int, Tokens], dict[int, EmbedmuxError]]:
        """Routes and tokens by text, and the errors of the texts that have none."""
        routes: dict[int, Route] = {}
        errors: dict[int, EmbedmuxError] = {}
        for index, (text, instruction) in enumerate(zip(job.texts, job.instructions, strict=True)):
            try:
                self._check_text(text, instruction.prompt or "")
                routes[index] = self._catalog.route(instruction, output.dimensions, output.encoding)
            except EmbedmuxError as error:
                errors[index] = error
        num_characters = sum(len(route.prompt) + len(job.texts[index]) for index, route in routes.items())
        if num_characters > self._limits.max_message_bytes:
            raise InvalidRequest(
                f"the texts with their prompts have {num_characters} characters, the limit is "
                f"{self._limits.max_message_bytes} (max_message_bytes); send several requests"
            )
        prompted = [route.prompt + job.texts[index] for index, route in routes.items()]
        found = await self._tokenizer.encode(prompted, job.truncate) if prompted else []
        tokens: dict[int, Tokens] = {}
        for index, result in zip(routes, found, strict=True):
            if isinstance(result, Tokens):
                tokens[index] = result
            else:
                errors[index] = result
        return routes, tokens, errors

    def _check(self, job: EmbedJob) -> None:
        """What concerns the whole request."""
        if not job.texts:
            raise InvalidRequest("the request has no texts; send at least one")
        if len(job.texts) > self._limits.max_texts:
            raise InvalidRequest(
                f"the request has {len(job.texts)} texts, the limit is {self._limits.max_texts} (max_texts); "
                "send several requests or use EmbedStream"
            )
        if job.model and job.model != self._engine.model.name:
            raise NotFound(f"model {job.model!r} is not served here; this server has {self._engine.model.name!r}")

    def _check_text(self, text: str, prompt: str) -> None:
        if not text:
            raise InvalidRequest("the text is empty; send at least one character")
        # A character is 1 to 4 bytes, so most texts are settled without encoding them.
        if 4 * (len(prompt) + len(text)) > self._limits.max_text_bytes:
            num_bytes = len(prompt.encode()) + len(text.encode())
            if num_bytes > self._limits.max_text_bytes:
                raise InvalidRequest(
                    f"the text with its prompt has {num_bytes} bytes, the limit is {self._limits.max_text_bytes} "
                    "(max_text_bytes); split it"
                )


def _place(
    rows: bytes, served: list[int], errors: dict[int, EmbedmuxError], num_texts: int, output: OutputSpec
) -> bytes:
    """One row per text of the request: the engine's for those served, zeros for those with an error."""
    if not errors:
        return rows
    width = output.encoding.row_bytes(output.dimensions)
    placed = bytearray(num_texts * width)
    for position, index in enumerate(served):
        if index not in errors:
            placed[index * width : (index + 1) * width] = rows[position * width : (position + 1) * width]
    return bytes(placed)


def _space(route: Route | None) -> Space | None:
    return route.space if route else None
