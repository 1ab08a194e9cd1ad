"""Proto <-> records of the Embedder, both ways, pure.

Embed's two functions are the hot path: vectors, sparse weights and token vectors are copied only once.
"""

from typing import Any

from embedmux.proto import embed_pb2, types_pb2
from embedmux.server import records
from embedmux.server.errors import EmbedmuxError, InvalidRequest
from embedmux.server.records import Encoding, Output, Role, Terms, Truncate
from embedmux.server.requests import EmbedJob, EmbedResult, Instruction, TokenizedText
from embedmux.server.rpc import status

ROLES = {
    types_pb2.ROLE_UNSPECIFIED: None,
    types_pb2.ROLE_QUERY: Role.QUERY,
    types_pb2.ROLE_DOCUMENT: Role.DOCUMENT,
}
ENCODINGS = {
    types_pb2.ENCODING_UNSPECIFIED: Encoding.FLOAT32,
    types_pb2.ENCODING_FLOAT32: Encoding.FLOAT32,
    types_pb2.ENCODING_FLOAT16: Encoding.FLOAT16,
    types_pb2.ENCODING_BFLOAT16: Encoding.BFLOAT16,
    types_pb2.ENCODING_INT8: Encoding.INT8,
    types_pb2.ENCODING_UINT8: Encoding.UINT8,
    types_pb2.ENCODING_BINARY: Encoding.BINARY,
    types_pb2.ENCODING_UBINARY: Encoding.UBINARY,
}
OUTPUTS = {
    types_pb2.OUTPUT_UNSPECIFIED: Output.DENSE,
    types_pb2.OUTPUT_DENSE: Output.DENSE,
    types_pb2.OUTPUT_SPARSE: Output.SPARSE,
    types_pb2.OUTPUT_TOKENS: Output.TOKENS,
}
TRUNCATES = {
    types_pb2.TRUNCATE_UNSPECIFIED: Truncate.NONE,
    types_pb2.TRUNCATE_NONE: Truncate.NONE,
    types_pb2.TRUNCATE_END: Truncate.END,
    types_pb2.TRUNCATE_START: Truncate.START,
}
# Of two numbers that mean the same, the last one stands: FLOAT32 and DENSE keep their own number, 1.
ENCODING_NUMBERS = {encoding: number for number, encoding in ENCODINGS.items()}
OUTPUT_NUMBERS = {output: number for number, output in OUTPUTS.items()}
ROLE_NUMBERS = {role: number for number, role in ROLES.items()}
BARE = Instruction()
DENSE_ONLY = (Output.DENSE,)
SPARSE_ID_BYTES = 4
# Tags of length-delimited fields of EmbedResponse: number << 3 | 2, as a varint.
VECTORS_TAG, SPARSE_IDS_TAG, SPARSE_WEIGHTS_TAG, TOKEN_VECTORS_TAG = b"\x0a", b"\x6a", b"\x72", b"\x8a\x01"


def embed_job(request: embed_pb2.EmbedRequest, *, terms: Terms) -> EmbedJob:
    """The request free of proto. Texts with equal instructions share one Instruction object."""
    texts, instructions = _texts(request)
    return EmbedJob(
        texts=texts,
        instructions=instructions,
        dimensions=request.dimensions or None,
        encoding=member(ENCODINGS, request.encoding, types_pb2.Encoding),
        truncate=member(TRUNCATES, request.truncate, types_pb2.Truncate),
        model=request.model or None,
        terms=terms,
        outputs=_outputs(request.outputs) if request.outputs else DENSE_ONLY,
        forces_dimensions=request.force_dimensions,
        echoes=request.echo,
    )


def tokenize_job(request: embed_pb2.TokenizeRequest, *, terms: Terms) -> EmbedJob:
    """The request as the job whose tokens are wanted."""
    texts, instructions = _texts(request)
    truncate = member(TRUNCATES, request.truncate, types_pb2.Truncate)
    return EmbedJob(texts, instructions, truncate=truncate, model=request.model or None, terms=terms)


def _texts(request: Any) -> tuple[tuple[str, ...], tuple[Instruction, ...]]:
    default = instruction(request.instruction) if request.HasField("instruction") else BARE
    messages = list(request.texts)
    texts = tuple([message.text for message in messages])
    has_own = [message.HasField("instruction") for message in messages]
    if True not in has_own:
        return texts, (default,) * len(texts)
    seen: dict[bytes, Instruction] = {}
    instructions = []
    for message, is_own in zip(messages, has_own, strict=True):
        instructions.append(_shared(message.instruction, seen) if is_own else default)
    return texts, tuple(instructions)


def _shared(message: types_pb2.Instruction, seen: dict[bytes, Instruction]) -> Instruction:
    key = message.SerializeToString()  # half the cost of building the record
    if key not in seen:
        seen[key] = instruction(message)
    return seen[key]


def instruction(message: types_pb2.Instruction) -> Instruction:
    """Empty strings become ``None``, except a prompt or instruction that was set: an empty prompt means no prefix."""
    return Instruction(
        task=message.task or None,
        role=member(ROLES, message.role, types_pb2.Role),
        adapter=message.adapter or None,
        prompt_name=message.prompt_name or None,
        prompt=message.prompt if message.HasField("prompt") else None,
        instruction=message.instruction if message.HasField("instruction") else None,
    )


def _outputs(numbers: Any) -> tuple[Output, ...]:
    """What is asked for, each once and in the order in which a row holds them."""
    asked = {member(OUTPUTS, number, types_pb2.Output) for number in numbers}
    return tuple(output for output in Output if output in asked)


def member(members: Any, number: int, enum: Any) -> Any:
    """The record's member for a number of the wire; InvalidRequest if this server does not know it."""
    try:
        return members[number]
    except KeyError:
        name = enum.DESCRIPTOR.name
        raise InvalidRequest(f"{name.lower()} is {number}; this server knows {', '.join(enum.keys())}") from None


def embed_reply(result: EmbedResult, *, request_id: str, outputs: tuple[Output, ...] = DENSE_ONLY) -> bytes:
    """An EmbedResponse as it travels.

    Bulk fields are joined to the others by hand: protobuf would copy them twice (measured for 128 KiB: 82 against
    8 microseconds). A serialised message may be joined from parts, each holding other fields.
    """
    index, spaces = _space_index(result.spaces)
    dimensions = result.dimensions if Output.DENSE in outputs else 0
    rest = embed_pb2.EmbedResponse(
        row_bytes=result.encoding.row_bytes(dimensions),
        encoding=ENCODING_NUMBERS[result.encoding],
        dimensions=dimensions,
        num_tokens=result.num_tokens,
        num_tokens_original=result.num_tokens_original,
        space_index=index,
        spaces=[types_pb2.Space(id=space.id, calibration=space.calibration) for space in spaces],
        errors=[text_error(at, error) for at, error in sorted(result.errors.items())],
        request_id=request_id,
    )
    parts = _field(VECTORS_TAG, [result.vectors]) if dimensions else []
    if result.sparse:
        ids = [text_ids for text_ids, _ in result.sparse]
        rest.sparse_lengths.extend([len(text_ids) // SPARSE_ID_BYTES for text_ids in ids])
        parts += _field(SPARSE_IDS_TAG, ids)
        parts += _field(SPARSE_WEIGHTS_TAG, [weights for _, weights in result.sparse])
    if result.token_vectors:
        row_bytes = result.encoding.row_bytes(result.token_dimensions)
        rest.token_dimensions = result.token_dimensions
        rest.token_rows.extend([len(rows) // row_bytes for rows in result.token_vectors])
        parts += _field(TOKEN_VECTORS_TAG, result.token_vectors)
    if result.rendered:
        rest.rendered.extend(result.rendered)
    return b"".join((*parts, rest.SerializeToString()))


def _field(tag: bytes, parts: list[bytes]) -> list[bytes]:
    """A bytes field of the wire whose content is ``parts``, end to end."""
    return [tag, _varint(sum(map(len, parts))), *parts]


def _space_index(of_texts: list[records.Space | None]) -> tuple[list[int], list[records.Space]]:
    """For each text its place in the list of distinct spaces; 0 where it has none."""
    places: dict[records.Space, int] = {}
    index = []
    last: records.Space | None = None
    place = 0
    for space in of_texts:
        if space is None:
            index.append(0)
            continue
        if space is not last:  # neighbours mostly share one object, and hashing a record costs more than all the rest
            place = places.setdefault(space, len(places))
            last = space
        index.append(place)
    return index, list(places)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def text_error(index: int, error: EmbedmuxError) -> types_pb2.TextError:
    """Why the text at ``index`` has no vector."""
    return types_pb2.TextError(index=index, code=status.code_of(error), message=status.message_of(error))


def failure_reply(error: EmbedmuxError, *, request_id: str) -> embed_pb2.EmbedResponse:
    """What a stream answers to a request that failed as a whole."""
    failure = types_pb2.Failure(
        code=status.code_of(error),
        message=status.message_of(error),
        retry_after_ms=status.retry_after_ms(error) or 0,
    )
    return embed_pb2.EmbedResponse(request_id=request_id, failure=failure)


def tokenize_reply(texts: list[TokenizedText | EmbedmuxError]) -> embed_pb2.TokenizeResponse:
    """One entry per text, empty where ``errors`` has one for it."""
    reply = embed_pb2.TokenizeResponse()
    for index, text in enumerate(texts):
        if isinstance(text, EmbedmuxError):
            reply.texts.add()
            reply.errors.append(text_error(index, text))
        else:
            reply.texts.add(ids=text.ids, tokens=text.tokens, num_tokens_original=text.original, prompt=text.prompt)
    return reply
