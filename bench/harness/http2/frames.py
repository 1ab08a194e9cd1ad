"""HTTP/2 frames and header blocks as bytes: what gRPC's own server writes to a peer without a header table."""

import struct
from collections.abc import Mapping

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS, PADDED = 0x4, 0x8
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5
REFUSED_STREAM, CANCEL = 7, 8
MAX_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65535
LARGEST_FRAME = (1 << 24) - 1

# Length and kind share the first word: one call reads the nine bytes.
HEAD = struct.Struct(">IBI")
SETTING = struct.Struct(">HI")
WORD = struct.Struct(">I")

OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 0, 1, 2, 4, 8, 13, 14
LOST = 100  # no gRPC status: the connection ended under a call that the server had taken
# gRPC's table of reset codes to statuses; a reset that it does not name is INTERNAL.
STATUS_OF_RESET = {REFUSED_STREAM: UNAVAILABLE, CANCEL: CANCELLED, 11: RESOURCE_EXHAUSTED, 12: 7}


# How the trailers of a call that went well begin.
OK_TRAILERS = b"@\x0bgrpc-status\x010"


class ProtocolError(Exception):
    """The peer sent what gRPC's server does not send to this client; a measurement must not go on."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def greeting() -> bytes:
    """What a client says first: no header table, no push, the widest windows and frames."""
    settings = {
        HEADER_TABLE_SIZE: 0,
        ENABLE_PUSH: 0,
        INITIAL_WINDOW_SIZE: MAX_WINDOW,
        MAX_FRAME_SIZE: LARGEST_FRAME,
    }
    packed = b"".join(SETTING.pack(*each) for each in settings.items())
    widened = frame(WINDOW_UPDATE, 0, 0, WORD.pack(MAX_WINDOW - DEFAULT_WINDOW))
    return PREFACE + frame(SETTINGS, 0, 0, packed) + widened


def request_block(authority: str, path: str, metadata: Mapping[str, str], timeout_s: float | None) -> bytes:
    """The header block of a unary gRPC call: literals that neither side keeps in a table.

    Raises ValueError for a header of 127 bytes or more.
    """
    fields = {":path": path, ":authority": authority, "te": "trailers", "content-type": "application/grpc"}
    if timeout_s is not None:
        fields["grpc-timeout"] = timeout_header(timeout_s)
    # 0x83 and 0x86 are `:method: POST` and `:scheme: http` of the static table.
    return b"\x83\x86" + b"".join(_literal(*each) for each in (fields | dict(metadata)).items())


def timeout_header(timeout_s: float) -> str:
    """Seconds in gRPC's words: at most eight digits, in milliseconds or, over a day, in seconds."""
    milliseconds = max(1, round(timeout_s * 1000))
    return f"{milliseconds}m" if milliseconds < 10**8 else f"{round(timeout_s)}S"


def _literal(name: str, value: str) -> bytes:
    raw = [part.encode("ascii") for part in (name.lower(), value)]
    for part in raw:
        if len(part) >= 127:
            raise ValueError(f"header {name!r} has {len(part)} bytes in its name or value, the limit is 126")
    return b"\0" + b"".join(bytes([len(part)]) + part for part in raw)


def read_fields(block: bytes) -> dict[bytes, bytes]:
    """The literal fields of a header block; what it takes from the static table is left out, but for a name's value.

    Raises ProtocolError for Huffman codes: gRPC's core writes none (seen with 1.85).
    """
    fields: dict[bytes, bytes] = {}
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            _, at = _integer(block, at, 7)
        elif first & 0xE0 == 0x20:  # the table's new size, which is 0
            _, at = _integer(block, at, 5)
        else:
            index, at = _integer(block, at, 6 if first & 0x40 else 4)
            name = b"%d" % index
            if index == 0:
                name, at = _string(block, at)
            fields[name], at = _string(block, at)
    return fields


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    full = (1 << bits) - 1
    value, at = block[at] & full, at + 1
    if value < full:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        value, shift, at = value + ((byte & 0x7F) << shift), shift + 7, at + 1
        if not byte & 0x80:
            return value, at


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    if block[at] & 0x80:
        raise ProtocolError("a header is Huffman-coded; this client reads plain literals, as gRPC's core writes them")
    size, at = _integer(block, at, 7)
    return block[at : at + size], at + size
