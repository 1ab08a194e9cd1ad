"""The edge of a call: statuses, request ids, push-back, the limit of calls."""

import asyncio
import logging
import re

import grpc
import pytest

from embedmux.proto import embed_pb2
from embedmux.server import errors
from embedmux.server.rpc.status import MAX_MESSAGE_BYTES, STATUS

REQUEST = embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text="a")])


def tree(root=errors.EmbedmuxError):
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


def raises(error):
    async def respond(job):
        raise error

    return respond


async def refused(running, **arguments) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await running.embedder.Embed(REQUEST, **arguments)
    return caught.value


def trailer(error, key):
    return dict(error.trailing_metadata()).get(key)


def test_every_error_class_has_the_status_that_the_tree_documents():
    documented = dict(re.findall(r"── (\w+) .* ([A-Z_]+)$", errors.__doc__ or "", re.MULTILINE))
    kinds = {kind for kind in tree() if kind.__module__ == errors.__name__}
    assert kinds == set(STATUS)
    assert documented == {kind.__name__: STATUS[kind].name for kind in kinds - {errors.EmbedmuxError}}


@pytest.mark.parametrize("kind", list(STATUS), ids=lambda kind: kind.__name__)
async def test_an_error_becomes_the_status_of_its_class(running, encoder, kind):
    encoder.respond = raises(kind("thing 'é' is 5, the limit is 4; send less"))
    error = await refused(running)
    assert (error.code(), error.details()) == (STATUS[kind], "thing 'é' is 5, the limit is 4; send less")
    assert await running.observer.ended() == ("Embedder/Embed", STATUS[kind].name)


async def test_the_request_id_is_echoed_in_success_and_failure(running, encoder):
    call = running.embedder.Embed(REQUEST, metadata=(("x-request-id", "abc-1"),))
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "abc-1"
    encoder.respond = raises(errors.NotFound("no"))
    assert trailer(await refused(running, metadata=(("x-request-id", "abc-2"),)), "x-request-id") == "abc-2"


async def test_a_call_without_request_id_gets_one(running):
    ids = []
    for _ in range(2):
        call = running.embedder.Embed(REQUEST)
        await call
        ids.append(dict(await call.trailing_metadata())["x-request-id"])
    assert len(ids[0]) == 16
    assert ids[0] != ids[1]


async def test_an_overlong_request_id_is_refused(running):
    error = await refused(running, metadata=(("x-request-id", "i" * 129),))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "metadata x-request-id has 129 characters; it takes 1 to 128 printable ASCII ones"


async def test_overload_carries_the_retry_push_back(running, encoder):
    encoder.respond = raises(errors.Overloaded("queue is full", retry_after_s=0.0421))
    assert trailer(await refused(running), "grpc-retry-pushback-ms") == "43"
    encoder.respond = raises(errors.Unavailable("restarting"))
    assert trailer(await refused(running), "grpc-retry-pushback-ms") is None


async def test_the_unexpected_is_logged_and_answered_with_the_request_id_only(running, encoder, caplog):
    encoder.respond = raises(RuntimeError("secret"))
    with caplog.at_level(logging.ERROR):
        error = await refused(running, metadata=(("x-request-id", "abc"),))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error in call abc; the server's log tells more under this id"
    assert "RuntimeError: secret" in caplog.text
    assert "call abc of Embedder/Embed failed" in caplog.text


async def test_work_that_something_dropped_is_answered_not_left_hanging(running, encoder, caplog):
    async def dropped(job):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    encoder.respond = dropped
    error = await refused(running, timeout=10)
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_a_long_message_is_cut_to_what_a_trailer_holds(running, encoder):
    encoder.respond = raises(errors.NotFound("é" * 100_000 + "\udcff"))
    error = await refused(running)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "é" * (MAX_MESSAGE_BYTES // 2) + " ... (cut)"


async def test_calls_over_the_limit_are_refused_with_push_back(serve, encoder):
    running = await serve(max_calls=2)
    done = asyncio.Event()
    answer = encoder.answer

    async def wait(job):
        await done.wait()
        return await answer(job)

    encoder.respond = wait
    calls = [running.embedder.Embed(REQUEST) for _ in range(2)]
    await encoder.has_jobs(2)
    error = await refused(running)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "3 calls are in flight, the limit is 2 (max_calls); try again in 100 ms"
    assert running.observer.reasons == ["calls"]
    assert trailer(error, "grpc-retry-pushback-ms") == "100"
    done.set()
    await asyncio.gather(*calls)
    await running.embedder.Embed(REQUEST)
