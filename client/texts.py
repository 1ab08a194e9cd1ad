"""What a caller asks for, and how it becomes request messages. Pure: no channel, no clock."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, TypeVar

from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.errors import InvalidRequest
from embedmux.server.records import Encoding, Output, Role, Truncate

RoleName = Literal["query", "document"]
EncodingName = Literal["float32", "float16", "bfloat16", "int8", "uint8", "binary", "ubinary"]
TruncateName = Literal["none", "end", "start"]
OutputName = Literal["dense", "sparse", "tokens"]
ErrorPolicy = Literal["raise", "return"]

Value = TypeVar("Value")

# A text that names its own task does not want the call's adapter, nor its own prompt name the call's literal prompt.
INHERITED_TOGETHER = (("task", "adapter"), ("role",), ("prompt_name", "prompt", "instruction"))
ROLES = {Role.QUERY.value: types_pb2.ROLE_QUERY, Role.DOCUMENT.value: types_pb2.ROLE_DOCUMENT}
ENCODINGS = {member.value: types_pb2.Encoding.Value(f"ENCODING_{member.name}") for member in Encoding}
OUTPUTS = {
    member.value: types_pb2.Output.Value(f"OUTPUT_{member.name}") for member in Output if member is not Output.SCORE
}
DENSE_ONLY: tuple[OutputName, ...] = ("dense",)
TRUNCATES = {member.value: types_pb2.Truncate.Value(f"TRUNCATE_{member.name}") for member in Truncate}


@dataclass(frozen=True, slots=True)
class Text:
    """One text with an instruction of its own; what it leaves out comes from the call.

    Task and adapter come from the call only if the text names neither; so do prompt name, prompt and instruction.
    ``prompt`` is a literal prefix and beats ``prompt_name``; an empty ``prompt`` means no prefix. ``instruction`` are
    free words for the model's own template.
    """

    text: str
    task: str | None = None
    role: RoleName | None = None
    adapter: str | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    instruction: str | None = None


class InstructionOptions(TypedDict, total=False):
    """What texts are for, unless a ``Text`` says otherwise."""

    task: str | None
    role: RoleName | None
    adapter: str | None
    prompt_name: str | None
    prompt: str | None
    instruction: str | None


class TokenizeOptions(InstructionOptions, total=False):
    """Options of ``tokenize``; ``model`` None is the server's first embedder."""

    truncate: TruncateName
    model: str | None


class EmbedOptions(TokenizeOptions, total=False):
    """Options of ``embed`` and ``embed_stream``.

    ``dimensions`` None is the model's full size; ``force_dimensions`` accepts one that the model does not declare.
    ``outputs`` are what to make of every text; ``echo`` also returns the exact text the model read.
    """

    dimensions: int | None
    encoding: EncodingName
    outputs: Sequence[OutputName]
    force_dimensions: bool
    echo: bool


def embed_request(texts: Sequence[str | Text], options: EmbedOptions, *, first: int = 0) -> embed_pb2.EmbedRequest:
    """One request for all ``texts``, of which errors say that the first is text ``first`` of the call.

    Raises InvalidRequest for an unknown role, encoding, output or truncate name, and for what is no text.
    """
    refuse_unknown(options, EmbedOptions)
    dimensions = options.get("dimensions")
    if dimensions is not None and dimensions < 1:
        raise InvalidRequest(f"dimensions is {dimensions}, it must be at least 1; leave it out for the full size")
    return embed_pb2.EmbedRequest(
        texts=[text_message(text, options, f"text {at}") for at, text in enumerate(texts, first)],
        instruction=instruction(None, options),
        dimensions=dimensions or 0,
        encoding=choice("encoding", options.get("encoding", "float32"), ENCODINGS),
        truncate=choice("truncate", options.get("truncate", "none"), TRUNCATES),
        model=options.get("model") or "",
        outputs=[] if (names := asked_outputs(options)) == DENSE_ONLY else [OUTPUTS[name] for name in names],
        force_dimensions=options.get("force_dimensions", False),
        echo=options.get("echo", False),
    )


def asked_outputs(options: EmbedOptions) -> tuple[str, ...]:
    """The outputs asked for; a single name stands for itself. Raises InvalidRequest for none or an unknown one."""
    outputs = options.get("outputs", DENSE_ONLY)
    names = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    if not names:
        raise InvalidRequest(f"outputs is empty; name at least one of {', '.join(OUTPUTS)}")
    for name in names:
        choice("outputs", name, OUTPUTS)
    return names


def split_requests(
    texts: Sequence[str | Text], options: EmbedOptions, *, batch_size: int
) -> Iterator[embed_pb2.EmbedRequest]:
    """Requests of at most ``batch_size`` texts each, in order."""
    for start in range(0, len(texts), batch_size):
        yield embed_request(texts[start : start + batch_size], options, first=start)


def tokenize_request(texts: Sequence[str | Text], options: TokenizeOptions) -> embed_pb2.TokenizeRequest:
    """One request for the token ids of ``texts``."""
    refuse_unknown(options, TokenizeOptions)
    return embed_pb2.TokenizeRequest(
        texts=[text_message(text, options, f"text {at}") for at, text in enumerate(texts)],
        instruction=instruction(None, options),
        truncate=choice("truncate", options.get("truncate", "none"), TRUNCATES),
        model=options.get("model") or "",
    )


def as_texts(texts: str | Text | Sequence[str | Text]) -> Sequence[str | Text]:
    """A single text as a list of one."""
    return [texts] if isinstance(texts, str | Text) else texts


def text_message(text: str | Text, options: InstructionOptions, name: str = "text") -> embed_pb2.Text:
    """One text, ``name`` in errors; a ``Text`` carries its whole instruction, since the server merges nothing."""
    if isinstance(text, str):
        return embed_pb2.Text(text=valid(name, text))
    if not isinstance(text, Text):
        raise InvalidRequest(f"a text must be a str or a Text, not {type(text).__name__}")
    return embed_pb2.Text(text=valid(name, text.text), instruction=instruction(text, options))


def instruction(text: Text | None, options: InstructionOptions) -> types_pb2.Instruction:
    """What the wire says ``text`` is for; None is a text without fields of its own."""
    fields: dict[str, str | None] = {}
    for group in INHERITED_TOGETHER:
        own = {name: getattr(text, name, None) for name in group}
        is_own = any(value is not None for value in own.values())
        fields |= own if is_own else {name: options.get(name) for name in group}  # type: ignore[misc]
    for name, value in fields.items():
        if value is not None:
            valid(name, value)
    role = fields["role"]
    return types_pb2.Instruction(
        task=fields["task"] or "",
        role=types_pb2.ROLE_UNSPECIFIED if role is None else choice("role", role, ROLES),
        adapter=fields["adapter"] or "",
        prompt_name=fields["prompt_name"] or "",
        prompt=fields["prompt"],
        instruction=fields["instruction"],
    )


def valid(name: str, given: str) -> str:
    """``given``, or InvalidRequest when it holds half of a surrogate pair and so cannot travel as UTF-8."""
    if not given.isascii():
        try:
            given.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"{name} holds {given[error.start]!r} at character {error.start}, which is no Unicode text; "
                "decode the input with the right encoding"
            ) from error
    return given


def choice(name: str, given: str, allowed: dict[str, Value]) -> Value:
    """``allowed[given]``, or InvalidRequest naming what is allowed."""
    if given not in allowed:
        raise InvalidRequest(f"{name} is {given!r}, it must be one of {', '.join(allowed)}")
    return allowed[given]


def check_policy(errors: ErrorPolicy) -> None:
    """Refuses a misspelt error policy."""
    choice("errors", errors, {"raise": None, "return": None})


def refuse_unknown(options: Mapping[str, object], known: type[Mapping[str, object]]) -> None:
    """TypeError for a misspelt option, as for any other keyword argument."""
    unknown = sorted(options.keys() - known.__annotations__.keys())
    if unknown:
        raise TypeError(f"unexpected option {unknown[0]!r}, it must be one of {', '.join(known.__annotations__)}")
