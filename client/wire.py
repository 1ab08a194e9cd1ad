"""How values lie in a reply, and as which numpy arrays the caller gets them."""

import numpy as np
from numpy.typing import NDArray

from embedmux.proto import types_pb2
from embedmux.server.records import Encoding

# How a value lies on the wire, and what the caller gets; numpy has no bfloat16, so its bits are widened to float32.
WIRE_DTYPES = {
    Encoding.FLOAT32: "<f4",
    Encoding.FLOAT16: "<f2",
    Encoding.BFLOAT16: "<u2",
    Encoding.INT8: "i1",
    Encoding.UINT8: "u1",
    Encoding.BINARY: "i1",
    Encoding.UBINARY: "u1",
}
ENCODINGS = {types_pb2.Encoding.Value(f"ENCODING_{member.name}"): member for member in Encoding}


def decode_rows(data: bytes, encoding: Encoding, row_bytes: int, num_rows: int) -> NDArray[np.generic]:
    """[num_rows, values] of the rows in ``data``: writable, native byte order."""
    flat = np.frombuffer(data, dtype=WIRE_DTYPES[encoding])
    wire = flat.reshape(num_rows, row_bytes // flat.itemsize)
    if encoding is Encoding.BFLOAT16:
        return (wire.astype(np.uint32) << 16).view(np.float32)
    return wire.astype(wire.dtype.newbyteorder("="))
