"""The engine's rows, taken apart: what stands where is fixed by records.OutputSpec."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from embedmux.server.records import Output, OutputSpec, Tokens

COUNT_BYTES = SPARSE_ID_BYTES = SPARSE_WEIGHT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One text's outputs as bytes; empty where they were not asked for.

    sparse_ids uint32 and sparse_weights float32 are of one length; ``token_vectors`` are rows in the encoding.
    """

    dense: bytes = b""
    sparse_ids: bytes = b""
    sparse_weights: bytes = b""
    token_vectors: bytes = b""
    score: bytes = b""


def take_apart(rows: bytes, tokens: Sequence[Tokens], output: OutputSpec) -> Iterator[Row]:
    """A Row for each text, in order."""
    start = 0
    for text in tokens:
        num_tokens = len(text.ids)
        parts: dict[str, bytes] = {}
        for kind in output.outputs:
            end = start + output.part_bytes(kind, num_tokens)
            parts |= _part(kind, rows[start:end], output)
            start = end
        yield Row(**parts)


def _part(kind: Output, part: bytes, output: OutputSpec) -> dict[str, bytes]:
    if kind is Output.DENSE:
        return {"dense": part}
    if kind is Output.SCORE:
        return {"score": part}
    count = int.from_bytes(part[:COUNT_BYTES], "little")
    if kind is Output.TOKENS:
        return {
            "token_vectors": part[
                COUNT_BYTES : COUNT_BYTES + count * output.encoding.row_bytes(output.token_dimensions)
            ]
        }
    ids_end = COUNT_BYTES + count * SPARSE_ID_BYTES
    return {
        "sparse_ids": part[COUNT_BYTES:ids_end],
        "sparse_weights": part[ids_end : ids_end + count * SPARSE_WEIGHT_BYTES],
    }
