"""The asyncio client against the fake server: the same promises, awaited."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from embedmux.client.aio import AsyncClient
from embedmux.server.errors import DeadlineExceeded, NotFound, Overloaded, Unavailable


@pytest.fixture
async def client(fake) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(fake.address, timeout=10, batch_size=4, in_flight=3) as client:
        yield client


async def test_a_long_list_is_split_and_comes_back_in_order(client, fake) -> None:
    texts = [f"text {number}" for number in range(50)]
    whole = await client.embed(texts, task="retrieval")
    assert len(fake.requests) == 13 and fake.max_under_way <= 3
    last = await client.embed(texts[49], task="retrieval")
    np.testing.assert_array_equal(whole.vectors[49], last.vectors[0])


async def test_errors_are_raised_or_returned(client) -> None:
    with pytest.raises(NotFound, match=r"^text 1: "):
        await client.embed(["a", "fail NOT_FOUND"])
    assert list((await client.embed(["a", "fail NOT_FOUND"], errors="return")).errors) == [1]
    with pytest.raises(DeadlineExceeded):
        await client.embed("slow 5", timeout=0.2)


async def test_push_back_is_honoured_and_reported(client, fake) -> None:
    started = asyncio.get_running_loop().time()
    await client.embed("overload 2")
    assert asyncio.get_running_loop().time() - started >= 0.4
    with pytest.raises(Overloaded) as caught:
        await client.embed("overload 99")
    assert caught.value.retry_after_s == 0.2


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_stream_answers_in_order_from_either_kind_of_iterable(client, is_async: bool) -> None:
    batches = [["a", "b"], "one", ["overload 1", "restart 1"]]

    async def source() -> AsyncIterator[list[str] | str]:
        for batch in batches:
            yield batch

    answers = [answer async for answer in client.embed_stream(source() if is_async else batches, task="retrieval")]
    assert [len(answer) for answer in answers] == [2, 1, 2]


async def test_a_stream_reads_its_batches_only_a_window_ahead(client) -> None:
    taken = []

    async def batches() -> AsyncIterator[list[str]]:
        for number in range(1000):
            taken.append(number)
            yield [str(number)]

    answers = client.embed_stream(batches(), window=5)
    for number in range(20):
        await anext(answers)
        assert len(taken) <= number + 1 + 5
    await answers.aclose()
    assert len(taken) <= 26


async def test_a_failing_source_raises_after_the_answers_it_had(client) -> None:
    async def batches() -> AsyncIterator[list[str]]:
        yield ["a"]
        raise ZeroDivisionError("source")

    answers = client.embed_stream(batches())
    assert len(await anext(answers)) == 1
    with pytest.raises(ZeroDivisionError):
        await anext(answers)


async def test_the_other_services_answer(client) -> None:
    await client.wait_until_serving(timeout=5)
    assert await client.is_serving()
    assert (await client.info()).models[0].name == "fake"
    assert (await client.tokenize("two words"))[0].ids == [0, 1]
    await client.load_adapter("legal")
    await client.unload_adapter("legal")
    assert [adapter.id for adapter in await client.adapters()] == ["retrieval", "classification"]


async def test_cancelling_a_call_cancels_what_is_under_way(client, fake) -> None:
    task = asyncio.create_task(client.embed(["slow 5"] * 12))
    assert await asyncio.to_thread(fake.wait_under_way, 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(fake.wait_under_way, 0)


async def test_no_server_is_one_clear_sentence() -> None:
    async with AsyncClient("127.0.0.1:1", max_attempts=1) as client:
        with pytest.raises(Unavailable, match=r"no server answers at 127.0.0.1:1 \(.*refused"):
            await client.embed("a")
        assert not await client.is_serving()
        with pytest.raises(DeadlineExceeded, match=r"does not serve after 0.3 s"):
            await client.wait_until_serving(timeout=0.3)
