"""What one request may cost: prompts count like texts, and nobody waits for work that nobody wants."""

import asyncio
import threading
from unittest.mock import create_autospec

import pytest

from embedmux.server.catalog import Catalog
from embedmux.server.config import Limits
from embedmux.server.encode import Encoder
from embedmux.server.errors import Cancelled, InvalidRequest
from embedmux.server.models import find_model
from embedmux.server.records import Route, Space, Truncate
from embedmux.server.requests import EmbedJob, Instruction
from embedmux.server.text import tokenizer as tokenizer_module
from embedmux.server.text.tokenizer import Tokenizer


def make_encoder(limits: Limits, prompt: str = "") -> Encoder:
    catalog = create_autospec(Catalog, instance=True)
    catalog.dimensions.return_value = 8
    catalog.route.return_value = Route(-1, "", prompt, Space("s"))
    return Encoder(catalog, Tokenizer(find_model("minilm"), max_tokens=16), create_autospec(object), limits)


async def test_a_free_prompt_counts_as_part_of_the_text() -> None:
    encoder = make_encoder(Limits(max_text_bytes=100))
    instructions = (Instruction(prompt="p" * 90), Instruction())
    found = await encoder.tokenize(EmbedJob(("t" * 20, "t" * 20), instructions, truncate=Truncate.END))
    assert isinstance(found[0], InvalidRequest)
    assert "with its prompt has 110 bytes, the limit is 100" in str(found[0])
    assert not isinstance(found[1], InvalidRequest)


async def test_a_prompt_times_many_texts_is_bounded() -> None:
    encoder = make_encoder(Limits(max_message_bytes=1000), prompt="p" * 50)
    with pytest.raises(InvalidRequest, match="have 1020 characters, the limit is 1000"):
        await encoder.embed(EmbedJob(("t",) * 20, (Instruction(),) * 20))


async def test_a_cancelled_call_stops_reading_at_the_next_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "CHUNK_CHARACTERS", 400)
    tokenizer = Tokenizer(find_model("minilm"), max_tokens=16, num_threads=1)
    task = asyncio.create_task(tokenizer.encode(["some words " * 30] * 20_000, Truncate.END))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    # One thread: the next call is read only because the cancelled one let go of it.
    assert len(await asyncio.wait_for(tokenizer.encode(["short " * 100], Truncate.END), timeout=2)) == 1


def test_a_stopped_or_closed_tokenizer_reads_no_further() -> None:
    tokenizer = Tokenizer(find_model("minilm"), max_tokens=16)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        tokenizer.encode_now(["text"], Truncate.END, stop)
    tokenizer.close()
    with pytest.raises(Cancelled):
        tokenizer.encode_now(["text"], Truncate.END)
