"""One real server: two tenants, tasks, a text that fails, a request that is wrong, a refused one; then its numbers."""

import importlib.util
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from embedmux.proto import embed_pb2, types_pb2
from embedmux.server.cli import main
from embedmux.server.cli.scrape import Scrape, scrape

# Test folders are no packages, so the helper is imported by its path.
PATH = Path(__file__).parents[2] / "end_to_end" / "end_to_end_support.py"
SPEC = importlib.util.spec_from_file_location("end_to_end_support", PATH)
assert SPEC is not None and SPEC.loader is not None
support = sys.modules.get("end_to_end_support") or importlib.util.module_from_spec(SPEC)
if "end_to_end_support" not in sys.modules:
    sys.modules["end_to_end_support"] = support
    SPEC.loader.exec_module(support)

OPTIONS = ("--threads", "1", "--max-batch-tokens", "256", "--max-queue-tokens", "300", "--no-coalesce")


@dataclass
class Metered:
    """A server with metrics, and what it answered."""

    address: str
    embedder: Any
    num_tokens: dict[str, list[int]] = field(default_factory=dict)

    def call(self, request: embed_pb2.EmbedRequest, tenant: str = "") -> Any:
        """A call that runs."""
        metadata = (("x-embedmux-tenant", tenant),) if tenant else ()
        return self.embedder.Embed.future(request, metadata=metadata, timeout=support.WAIT_S)

    def when(self, name: str, number: float) -> Scrape:
        """The metrics once a counter has come to a number: the engine tells its own once a second."""
        found = [scrape(self.address)]

        def has_come() -> bool:
            found[0] = scrape(self.address)
            return found[0].value(name) >= number

        support.wait_for(has_come, f"{name} is {number}")
        return found[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    """The server, after its requests."""
    folder = tmp_path_factory.mktemp("metered")
    port_file = folder / "metrics-port"
    listens = ("--metrics-address", "127.0.0.1:0", "--metrics-port-file", str(port_file))
    with support.serving(folder, *OPTIONS, *listens) as served:
        found = Metered(f"127.0.0.1:{port_file.read_text().strip()}", served.stubs().embedder)
        send(found)
        yield found


def send(server: Metered) -> None:
    """ann: two texts with a task and one without, which is cut. bob: a text that fails beside one that does not, then
    two requests of which the queue takes one. Nobody: a request without texts.
    """
    mixed = embed_pb2.EmbedRequest(
        texts=[
            embed_pb2.Text(text="river", instruction=types_pb2.Instruction(task="classification")),
            embed_pb2.Text(text="river stone", instruction=types_pb2.Instruction(task="clustering")),
            embed_pb2.Text(text="river " * 600),
        ],
        truncate=types_pb2.TRUNCATE_END,
    )
    server.num_tokens["ann"] = list(server.call(mixed, "ann").result().num_tokens)
    one_fails = server.call(support.embed_request("fire", ""), "bob").result()
    assert [error.index for error in one_fails.errors] == [1]
    assert server.call(embed_pb2.EmbedRequest()).code() is grpc.StatusCode.INVALID_ARGUMENT
    texts = [" ".join(support.WORDS[at % 20 :][:30]) for at in range(150)]
    both = [server.call(support.embed_request(*texts), "bob") for _ in range(2)]
    answered, refused = sorted(both, key=lambda call: call.code() is not grpc.StatusCode.OK)
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.num_tokens["bob"] = [*answered.result().num_tokens, one_fails.num_tokens[0]]


def test_texts_and_tokens_are_told_by_tenant_and_adapter(server: Metered) -> None:
    found = server.when("embedmux_texts_total", 3 + 1 + 150)
    ann, bob = server.num_tokens["ann"], server.num_tokens["bob"]
    assert found.by("embedmux_tokens_total", "tenant", "adapter") == {
        ("ann", "classification"): ann[0],
        ("ann", "clustering"): ann[1],
        ("ann", "none"): ann[2],
        ("bob", "none"): sum(bob),
    }
    assert found.by("embedmux_texts_total", "tenant", "model") == {("ann", "minilm"): 3, ("bob", "minilm"): 151}
    assert found.by("embedmux_requests_total", "tenant") == {("ann",): 1, ("bob",): 2}
    assert {key: value for key, value in found.by("embedmux_truncated_texts_total", "tenant").items() if value} == {
        ("ann",): 1
    }


def test_what_went_wrong_is_told_by_its_kind(server: Metered) -> None:
    found = server.when("embedmux_call_seconds_count", 5)
    assert found.by("embedmux_call_seconds_count", "method", "code") == {
        ("Embedder/Embed", "OK"): 3,
        ("Embedder/Embed", "INVALID_ARGUMENT"): 1,
        ("Embedder/Embed", "RESOURCE_EXHAUSTED"): 1,
    }
    assert found.by("embedmux_refused_requests_total", "reason", "tenant") == {("queue", "bob"): 1}
    assert found.by("embedmux_text_errors_total", "error") == {("InvalidRequest",): 1}
    assert found.value("embedmux_calls_in_flight") == 0


def test_the_engine_tells_what_it_computed(server: Metered) -> None:
    found = server.when("embedmux_engine_texts_total", 3 + 151)
    assert found.value("embedmux_engine_tokens_total") >= sum(map(sum, server.num_tokens.values()))
    assert found.by("embedmux_queue_seconds_count", "model", "priority") == {
        ("minilm", "interactive"): found.value("embedmux_engine_texts_total")
    }
    assert found.value("embedmux_compute_seconds_count") == found.value("embedmux_engine_batches_total") > 10
    assert found.value("embedmux_adapters") == 4 and found.value("embedmux_adapter_used_bytes") > 1e6
    assert found.value("embedmux_queue_limit_tokens") == 300 and found.value("embedmux_batch_limit_tokens") == 256
    assert found.by("embedmux_state", "state")["serving",] == 1 == found.value("embedmux_state")
    assert found.value("process_resident_memory_bytes") > 1e7


def test_health_is_told_over_http(server: Metered) -> None:
    with urllib.request.urlopen(f"http://{server.address}/healthz", timeout=10) as answer:
        assert (answer.status, answer.read()) == (200, b"serving\n")


def test_top_shows_it(server: Metered, capsys: pytest.CaptureFixture[str]) -> None:
    running = server.call(support.embed_request(*[" ".join(support.WORDS[:30])] * 150), "ann")
    assert main(["top", server.address, "--once"]) == 0
    shown = capsys.readouterr().out
    assert f"at {server.address} · serving · engine restarts 0 · last 1." in shown
    assert "4 " in next(line for line in shown.splitlines() if line.startswith("minilm"))
    running.result()
