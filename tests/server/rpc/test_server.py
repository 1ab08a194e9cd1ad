"""Reflection, info, adapters and addresses."""

import socket
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from embedmux.proto import adapters_pb2, embed_pb2, server_pb2, types_pb2
from embedmux.server.facts import ModelInfo, ServedModel, ServerInfo, ServerLimits, ServerState, TaskInfo
from embedmux.server.rpc.adapters import Adapters
from embedmux.server.rpc.embedder import Embedder
from embedmux.server.rpc.info import Info
from embedmux.server.rpc.lifecycle import Lifecycle
from embedmux.server.rpc.reranker import Reranker
from embedmux.server.rpc.server import TransportOptions, build_server

SERVICES = ["embedmux.v1.Adapters", "embedmux.v1.Embedder", "embedmux.v1.Reranker", "embedmux.v1.Server"]


async def test_reflection_lists_the_services_and_describes_their_messages(running):
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="embedmux.v1.EmbedRequest"),
    ]
    listed, described = [reply async for reply in stub.ServerReflectionInfo(iter(requests))]
    names = [service.name for service in listed.list_services_response.service]
    assert names == [*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file).name
        for file in described.file_descriptor_response.file_descriptor_proto
    ]
    assert files == ["embedmux/proto/embed.proto", "embedmux/proto/types.proto"]


def test_every_method_of_the_protos_is_served():
    for service in (Embedder, Reranker, Adapters, Info):
        assert {method.name for method in service.SERVICE.methods} <= set(vars(service))


async def test_info_tells_models_tasks_and_limits(serve):
    info = ModelInfo(
        "m", "d", "bert", 384, 512, "mean", "float32", "cpu", {64: "c"}, {"attention": "csrc"}, "avx512",
        family="bge-m3", kind="embedder", sizes=(384, 128), any_size_from=64, outputs=("dense", "sparse", "score"),
        template="Instruct: {instruction}", default_instruction="find", activation="sigmoid", notes=("cut on the left",)
    )  # fmt: skip
    task = TaskInfo("retrieval", "r", "q: ", "d: ", "s1", aliases=("search",))
    model = ServedModel(info, (task,), {"query": "q: "})
    described = ServerInfo("1.2", ServerState.SERVING, (model,), ServerLimits(1, 2, 3, 4, 5))
    running = await serve(facts=SimpleNamespace(describe=lambda: described))
    reply = await running.info.Info(server_pb2.InfoRequest())
    assert reply == server_pb2.InfoResponse(
        version="1.2",
        state="serving",
        models=[
            server_pb2.ModelInfo(
                name="m",
                digest="d",
                architecture="bert",
                dimensions=384,
                max_tokens=512,
                pooling="mean",
                dtype="float32",
                device="cpu",
                tasks=[
                    server_pb2.TaskInfo(
                        name="retrieval",
                        adapter="r",
                        query_prompt="q: ",
                        document_prompt="d: ",
                        space="s1",
                        aliases=["search"],
                    )
                ],
                kernels={"attention": "csrc"},
                instruction_set="avx512",
                family="bge-m3",
                kind="embedder",
                sizes=[384, 128],
                any_size_from=64,
                outputs=[types_pb2.OUTPUT_DENSE, types_pb2.OUTPUT_SPARSE],  # a score is no output of Embed
                template="Instruct: {instruction}",
                default_instruction="find",
                activation="sigmoid",
                notes=["cut on the left"],
                prompts={"query": "q: "},
                calibrated_dimensions=[64],
            )
        ],
        limits=server_pb2.Limits(
            max_texts=1, max_text_bytes=2, max_batch_tokens=3, max_queue_tokens=4, max_message_bytes=5
        ),
    )


async def test_adapters_are_loaded_listed_and_unloaded(running):
    loaded = await running.adapters.Load(adapters_pb2.LoadAdapterRequest(path="folder"))
    assert loaded == adapters_pb2.AdapterInfo(
        role=types_pb2.ROLE_DOCUMENT,
        model="first",
        id="folder",
        digest="d1",
        prompts={"query": "q: "},
        max_rank=8,
        num_targets=12,
        num_bytes=1000,
        calibrated_dimensions=[64, 128],
        placement="low-rank",
    )
    mine = await running.adapters.Load(
        adapters_pb2.LoadAdapterRequest(path="folder", id="mine", model="second", placement="merged")
    )
    assert (mine.model, mine.placement) == ("second", "merged")
    with pytest.raises(grpc.aio.AioRpcError, match="placement is 'both'; it must be low-rank or merged") as refused:
        await running.adapters.Load(adapters_pb2.LoadAdapterRequest(path="folder", placement="both"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    of_second = await running.adapters.List(adapters_pb2.ListAdaptersRequest(model="second"))
    assert [adapter.id for adapter in of_second.adapters] == ["mine"]
    await running.adapters.Unload(adapters_pb2.UnloadAdapterRequest(id="folder"))
    assert [adapter.id for adapter in (await running.adapters.List(adapters_pb2.ListAdaptersRequest())).adapters] == [
        "mine"
    ]


@pytest.mark.parametrize(
    ("method", "request_"), [("Load", adapters_pb2.LoadAdapterRequest), ("Unload", adapters_pb2.UnloadAdapterRequest)]
)
async def test_an_empty_path_or_id_is_refused(running, method, request_):
    with pytest.raises(grpc.aio.AioRpcError, match="is empty") as caught:
        await getattr(running.adapters, method)(request_())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_unix_socket_is_served_and_not_taken_over(serve, tmp_path):
    address = f"unix:{tmp_path}/embedmux.sock"
    running = await serve(addresses=(address, "127.0.0.1:0"))
    assert running.server.ports[0] == 0
    assert running.server.ports[1] > 0
    await running.embedder.Embed(embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text="a")]))
    with pytest.raises(OSError, match="is served by another process"):
        await serve(addresses=(address,))


async def test_a_socket_file_left_by_a_dead_server_is_replaced(serve, tmp_path):
    path = tmp_path / "embedmux.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    running = await serve(addresses=(f"unix:{path}",))
    await running.embedder.Embed(embed_pb2.EmbedRequest(texts=[embed_pb2.Text(text="a")]))


async def test_an_address_that_is_taken_is_refused(running):
    with pytest.raises(OSError, match=f"address '{running.address}' cannot be bound"):
        build_server([], Lifecycle(), options=TransportOptions(addresses=(running.address,)))
