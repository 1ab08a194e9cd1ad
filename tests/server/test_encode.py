"""One request to one model: what it may cost, what is read, and how the engine's rows become a result."""

import asyncio
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest

from embedmux.server.catalog import Catalog
from embedmux.server.config import Limits
from embedmux.server.contract import Contract, LateContract, Prompts
from embedmux.server.encode import Encoder
from embedmux.server.errors import (
    Cancelled,
    EmbedmuxError,
    EngineFailure,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from embedmux.server.facts import ModelInfo
from embedmux.server.models import find_model
from embedmux.server.records import Encoding, Output, OutputSpec, Pooling, Role, Route, Space, Terms, Tokens, Truncate
from embedmux.server.requests import EmbedJob, EmbedResult, Instruction
from embedmux.server.text import tokenizer as tokenizer_module
from embedmux.server.text.frames import Frame
from embedmux.server.text.tokenizer import Tokenizer

Folder = Callable[[str], Path]
MODEL = ModelInfo("tiny", "b" * 64, "bert", 4, 64, "mean", "float32", "cpu", {}, {}, "none")
CONTRACT = Contract("test", "bert", 16, Pooling.MEAN, (4,), prompts=Prompts({"query": "ask: ", "document": "hold: "}))
BERT_LATE = LateContract(
    3, query_marker=5, document_marker=6, query_tokens=12, mask_token=4, skipped=(7,), skips_first=True
)
QUERY, DOCUMENT = Instruction(role=Role.QUERY), Instruction(role=Role.DOCUMENT)


class FakeEngine:
    """Rows that say which token ids they come from, laid out as OutputSpec says; ``errors`` by place fail."""

    model = MODEL

    def __init__(self, errors: dict[int, EmbedmuxError] | None = None) -> None:
        self.adapters: dict[str, object] = {}
        self.errors = errors or {}
        self.tokens: list[Tokens] = []

    def expect(self, num_characters: int, terms: Terms) -> None:
        """Takes all."""

    async def embed(
        self, tokens: list[Tokens], adapters: list[int], output: OutputSpec, terms: Terms
    ) -> tuple[bytes, dict[int, EmbedmuxError]]:
        self.tokens = tokens
        return b"".join(self.row(text, output) for text in tokens), self.errors

    def row(self, text: Tokens, output: OutputSpec) -> bytes:
        row = b""
        if Output.DENSE in output.outputs:
            row += np.full(output.dimensions, sum(text.ids), dtype="<f4").tobytes()
        if Output.SPARSE in output.outputs:
            kinds = sorted(set(text.ids))
            part = struct.pack(f"<I{len(kinds)}I{len(kinds)}f", len(kinds), *kinds, *(kind / 2 for kind in kinds))
            row += part.ljust(output.part_bytes(Output.SPARSE, len(text.ids)), b"\0")
        if Output.TOKENS in output.outputs:
            vectors = np.repeat(np.array(text.ids, dtype="<f4")[:, None], output.token_dimensions, axis=1)
            row += struct.pack("<I", len(text.ids)) + vectors.tobytes()
        assert len(row) == output.row_bytes(len(text.ids))
        return row


def make_encoder(
    folder: Path, engine: FakeEngine | None = None, contract: Contract = CONTRACT, limits: Limits | None = None
) -> Encoder:
    engine = engine or FakeEngine()
    catalog = Catalog(engine, contract)  # type: ignore[arg-type]
    return Encoder(catalog, Tokenizer(folder, contract), engine, limits or Limits())  # type: ignore[arg-type]


def job(texts: list[str], instruction: Instruction = QUERY, **more: object) -> EmbedJob:
    return EmbedJob(tuple(texts), (instruction,) * len(texts), **more)  # type: ignore[arg-type]


def floats(found: bytes) -> list[float]:
    return np.frombuffer(found, dtype="<f4").tolist()


async def test_a_free_prompt_counts_as_part_of_the_text() -> None:
    encoder = make_encoder(find_model("minilm"), limits=Limits(max_text_bytes=100))
    instructions = (Instruction(prompt="p" * 90), Instruction())
    found = await encoder.tokenize(EmbedJob(("t" * 20, "t" * 20), instructions, truncate=Truncate.END))
    assert isinstance(found[0], InvalidRequest)
    assert "with its prompt has 110 bytes, the limit is 100" in str(found[0])
    assert not isinstance(found[1], InvalidRequest)


async def test_a_prompt_times_many_texts_is_bounded() -> None:
    contract = replace(CONTRACT, prompts=Prompts({"query": "p" * 40}), suffix="s" * 10)
    encoder = make_encoder(find_model("minilm"), contract=contract, limits=Limits(max_message_bytes=1000))
    with pytest.raises(InvalidRequest, match="have 1020 characters, the limit is 1000"):
        await encoder.embed(job(["t"] * 20))


async def test_a_cancelled_call_stops_reading_at_the_next_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "CHUNK_CHARACTERS", 400)
    tokenizer = Tokenizer(find_model("minilm"), CONTRACT, num_threads=1)
    task = asyncio.create_task(tokenizer.encode([Frame("", "some words " * 30)] * 20_000, Truncate.END))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    # One thread: the next call is read only because the cancelled one let go of it.
    assert len(await asyncio.wait_for(tokenizer.encode([Frame("", "short " * 100)], Truncate.END), timeout=2)) == 1


def test_a_stopped_or_closed_tokenizer_reads_no_further() -> None:
    tokenizer = Tokenizer(find_model("minilm"), CONTRACT)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        tokenizer.encode_now([Frame("", "text")], Truncate.END, stop)
    tokenizer.close()
    with pytest.raises(Cancelled):
        tokenizer.encode_now([Frame("", "text")], Truncate.END)


async def test_every_text_gets_its_own_row_or_its_own_error(tokenizer_folder: Folder) -> None:
    engine = FakeEngine(errors={1: EngineFailure("not finite")})
    texts = ["the moon", "", "the sea", "word " * 30, "seven"]
    found = await make_encoder(tokenizer_folder("bert"), engine).embed(job(texts))
    assert {index: type(error) for index, error in found.errors.items()} == {
        1: InvalidRequest,
        2: EngineFailure,
        3: InvalidRequest,
    }
    rows = np.frombuffer(found.vectors, dtype="<f4").reshape(5, 4)
    assert rows[0].tolist() == [sum(engine.tokens[0].ids)] * 4
    assert rows[4].tolist() == [sum(engine.tokens[2].ids)] * 4
    assert not rows[1:4].any()
    assert found.num_tokens == [len(engine.tokens[0].ids), 0, len(engine.tokens[1].ids), 0, len(engine.tokens[2].ids)]
    assert [space is not None for space in found.spaces] == [True, False, True, True, True]
    assert (found.sparse, found.token_vectors, found.rendered) == ([], [], [])


async def test_an_error_of_the_whole_request_is_raised(tokenizer_folder: Folder) -> None:
    encoder = make_encoder(tokenizer_folder("bert"), FakeEngine(errors={0: Overloaded("full")}))
    with pytest.raises(Overloaded):
        await encoder.embed(job(["a", "b"]))


async def test_a_catalogue_without_an_engine_concerns_the_whole_request(tokenizer_folder: Folder) -> None:
    class Gone(FakeEngine):
        def __init__(self) -> None:
            pass

        @property
        def adapters(self) -> dict[str, object]:  # type: ignore[override]
            raise Unavailable("the engine process is being restarted; try again")

    encoder = make_encoder(tokenizer_folder("bert"), Gone())
    for call in (encoder.embed, encoder.tokenize):
        with pytest.raises(Unavailable, match="restarted"):
            await call(job(["a", "b"]))


async def test_the_rendered_text_is_echoed_exactly(tokenizer_folder: Folder) -> None:
    contract = replace(CONTRACT, suffix=" <end>", template="Do {instruction}: ")
    instructions = (QUERY, DOCUMENT, Instruction(instruction="as {query}"), Instruction(task="none"), QUERY)
    texts = ("what {x}?", " a text ", "it", "lost", "")
    found = await make_encoder(tokenizer_folder("bert"), contract=contract).embed(
        EmbedJob(texts, instructions, echoes=True, truncate=Truncate.END)
    )
    assert found.rendered == ["ask: what {x}? <end>", "hold:  a text  <end>", "Do as {query}: it <end>", "", ""]
    assert set(found.errors) == {3, 4}


async def test_prompts_are_shared_tokens(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    await make_encoder(tokenizer_folder("bert"), engine).embed(job(["the moon", "the sea"]))
    first, second = engine.tokens
    assert first.shared == second.shared > 2
    assert first.ids[: first.shared] == second.ids[: first.shared]


async def embed_all(folder: Path, engine: FakeEngine, **more: object) -> EmbedResult:
    contract = replace(
        CONTRACT, outputs=(Output.DENSE, Output.SPARSE, Output.TOKENS), late=LateContract(3, skips_first=True)
    )
    texts = ["the moon", "", "the sea and the moon"]
    outputs = (Output.DENSE, Output.SPARSE, Output.TOKENS)
    return await make_encoder(folder, engine, contract).embed(job(texts, outputs=outputs, **more))


async def test_rows_of_several_outputs_are_taken_apart(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    found = await embed_all(tokenizer_folder("bert"), engine)
    first, last = engine.tokens
    assert floats(found.vectors) == [sum(first.ids)] * 4 + [0.0] * 4 + [sum(last.ids)] * 4
    assert found.sparse[1] == (b"", b"")
    for (ids, weights), text in zip((found.sparse[0], found.sparse[2]), engine.tokens, strict=True):
        assert np.frombuffer(ids, dtype="<u4").tolist() == sorted(set(text.ids))
        assert floats(weights) == [kind / 2 for kind in sorted(set(text.ids))]
    assert found.token_dimensions == 3
    assert floats(found.token_vectors[0]) == [float(at) for at in first.ids[1:] for _ in range(3)]
    assert found.token_vectors[1] == b""
    assert floats(found.token_vectors[2]) == [float(at) for at in last.ids[1:] for _ in range(3)]


async def test_a_failed_text_has_no_parts(tokenizer_folder: Folder) -> None:
    found = await embed_all(tokenizer_folder("bert"), FakeEngine(errors={1: EngineFailure("x")}))
    assert set(found.errors) == {1, 2}
    assert found.sparse[2] == (b"", b"") and found.token_vectors[2] == b""
    assert not any(floats(found.vectors)[4:])


COLBERT = replace(CONTRACT, outputs=(Output.TOKENS,), late=BERT_LATE, prompts=Prompts())


async def test_late_interaction_marks_fills_and_skips(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    encoder = make_encoder(tokenizer_folder("bert"), engine, COLBERT)
    texts = ("the moon", "the moon", "word " * 30)
    asked = EmbedJob(
        texts, (QUERY, DOCUMENT, QUERY), outputs=(Output.TOKENS,), truncate=Truncate.END, encoding=Encoding.FLOAT32
    )
    found = await encoder.embed(asked)
    assert not found.errors and found.vectors == b""
    query, document, long = engine.tokens
    assert query.ids[:2] == [2, 5] and query.ids[-1] == 4 and len(query.ids) == 12
    end = query.ids.index(3)
    assert query.ids[end + 1 :] == [4] * (12 - end - 1)
    assert document.ids == [2, 6, *query.ids[2:end], 3]
    assert (long.ids[:2], long.ids[-1], len(long.ids)) == ([2, 5], 3, 12)
    assert found.num_tokens == [12, len(document.ids), 12]
    assert found.num_tokens_original[0] == 12 and found.num_tokens_original[2] > 30
    assert floats(found.token_vectors[0]) == [float(at) for at in query.ids[1:] for _ in range(3)]


async def test_documents_leave_out_skipped_tokens(tokenizer_folder: Folder) -> None:
    engine = FakeEngine()
    comma = Tokenizer(tokenizer_folder("bert"), CONTRACT).library.token_to_id(",")
    contract = replace(COLBERT, late=replace(BERT_LATE, skipped=(comma, 3)))
    encoder = make_encoder(tokenizer_folder("bert"), engine, contract)
    found = await encoder.embed(EmbedJob(("a, b",) * 2, (QUERY, DOCUMENT), outputs=(Output.TOKENS,)))
    query, document = engine.tokens
    assert comma in query.ids and comma in document.ids
    assert floats(found.token_vectors[0])[::3] == query.ids[1:]
    assert floats(found.token_vectors[1])[::3] == [at for at in document.ids[1:] if at not in (comma, 3)]


async def test_sides_that_differ_must_be_named(tokenizer_folder: Folder) -> None:
    encoder = make_encoder(tokenizer_folder("bert"), contract=COLBERT)
    found = await encoder.embed(job(["the moon"], Instruction(), outputs=(Output.TOKENS,)))
    assert "set role to query or document" in str(found.errors[0])


async def test_a_model_of_token_vectors_alone_refuses_dense_and_tokenizes_what_it_reads(
    tokenizer_folder: Folder,
) -> None:
    encoder = make_encoder(tokenizer_folder("bert"), contract=COLBERT)
    with pytest.raises(InvalidRequest, match="makes no dense output; it makes: tokens"):
        await encoder.embed(job(["x"]))
    (found,) = await encoder.tokenize(job(["the moon"]))
    assert not isinstance(found, EmbedmuxError)
    assert found.tokens[:2] == ["[CLS]", "[unused0]"] and found.tokens[-1] == "[MASK]"


async def test_undeclared_sizes_need_force(tokenizer_folder: Folder) -> None:
    encoder = make_encoder(tokenizer_folder("bert"))
    with pytest.raises(InvalidRequest, match="set force_dimensions"):
        await encoder.embed(job(["x"], dimensions=2))
    found = await encoder.embed(job(["x"], dimensions=2, forces_dimensions=True))
    assert (found.dimensions, len(found.vectors)) == (2, 8)


async def test_another_model_s_request_is_not_answered(tokenizer_folder: Folder) -> None:
    with pytest.raises(NotFound, match="'other' is not served here; this server has 'tiny'"):
        await make_encoder(tokenizer_folder("bert")).embed(job(["x"], model="other"))


async def test_a_catalogue_that_refuses_costs_its_neighbours_nothing() -> None:
    catalog = create_autospec(Catalog, instance=True)
    catalog.contract = CONTRACT
    catalog.output.return_value = OutputSpec(4, Encoding.FLOAT32)
    catalog.route.side_effect = [NotFound("no"), Route(-1, "", "", Space("s"))]
    encoder = Encoder(catalog, Tokenizer(find_model("minilm"), CONTRACT), FakeEngine(), Limits())
    found = await encoder.embed(job(["a", "b"]))
    assert list(found.errors) == [0] and found.num_tokens[1] == 3
