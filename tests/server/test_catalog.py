"""Instructions resolve to exactly one adapter, prompt and space, or are refused with what would have worked."""

from dataclasses import dataclass, field

import pytest

from embedmux.server.catalog import Catalog
from embedmux.server.errors import EmbedmuxError, InvalidRequest, NotFound
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.records import BASE_MODEL, Encoding, Role
from embedmux.server.requests import Instruction
from embedmux.server.text.prompts import Prompts

MODEL = ModelInfo("tiny", "b" * 64, "bert", 32, 64, "mean", "float32", "cpu", {32: "base-ranges"}, {}, "none")


def make_adapter(handle: int, name: str, **facts: object) -> AdapterInfo:
    values = {"task": name, "prompts": {}, "calibrations": {}, "digest": name * 8} | facts
    return AdapterInfo(handle=handle, id=name, max_rank=4, num_bytes=1, num_targets=1, **values)  # type: ignore[arg-type]


@dataclass
class Engine:
    """The two facts the catalogue reads."""

    model: ModelInfo = MODEL
    adapters: dict[str, AdapterInfo] = field(default_factory=dict)


def make_catalog(*adapters: AdapterInfo, prompts: Prompts | None = None) -> Catalog:
    engine = Engine(adapters={adapter.id: adapter for adapter in adapters})
    return Catalog(engine, prompts or Prompts())  # type: ignore[arg-type]


RETRIEVAL = make_adapter(
    0, "retrieval", prompts={"query": "query: ", "document": "document: "}, calibrations={16: "ranges"}
)
MATCHING = make_adapter(1, "text-matching")


def test_nothing_named_is_the_bare_model() -> None:
    route = make_catalog(RETRIEVAL).route(Instruction(), 32, Encoding.FLOAT32)
    assert (route.adapter, route.adapter_id, route.prompt) == (BASE_MODEL, "", "")


def test_query_and_document_share_a_space_and_differ_in_prompt() -> None:
    catalog = make_catalog(RETRIEVAL, MATCHING)
    query = catalog.route(Instruction(task="retrieval", role=Role.QUERY), 32, Encoding.FLOAT32)
    document = catalog.route(Instruction(task="retrieval", role=Role.DOCUMENT), 32, Encoding.FLOAT32)
    assert (query.prompt, document.prompt) == ("query: ", "document: ")
    assert query.space == document.space
    assert query.adapter == document.adapter == 0


@pytest.mark.parametrize(
    "other",
    [
        (Instruction(task="text-matching"), 32),
        (Instruction(), 32),
        (Instruction(task="retrieval", role=Role.QUERY), 16),
        (Instruction(task="retrieval", role=Role.QUERY, prompt="find: "), 32),
    ],
)
def test_task_size_and_free_prompt_change_the_space(other: tuple[Instruction, int]) -> None:
    catalog = make_catalog(RETRIEVAL, MATCHING)
    space = catalog.route(Instruction(task="retrieval", role=Role.QUERY), 32, Encoding.FLOAT32).space
    assert catalog.route(*other, Encoding.FLOAT32).space != space


def test_encoding_does_not_change_the_space_but_calibration_is_told() -> None:
    catalog = make_catalog(RETRIEVAL)
    instruction = Instruction(task="retrieval", role=Role.QUERY)
    assert (
        catalog.route(instruction, 16, Encoding.BINARY).space == catalog.route(instruction, 16, Encoding.FLOAT32).space
    )
    assert catalog.route(instruction, 16, Encoding.INT8).space.calibration == "ranges"
    assert catalog.route(Instruction(), 32, Encoding.UINT8).space.calibration == "base-ranges"


@pytest.mark.parametrize(
    ("alias", "adapter", "prompt"),
    [("retrieval_query", 0, "query: "), ("retrieval.passage", 0, "document: "), ("similarity", 1, "")],
)
def test_aliases_carry_task_and_role(alias: str, adapter: int, prompt: str) -> None:
    route = make_catalog(RETRIEVAL, MATCHING).route(Instruction(task=alias), 32, Encoding.FLOAT32)
    assert (route.adapter, route.prompt) == (adapter, prompt)


def test_a_changed_adapter_takes_effect_at_once() -> None:
    engine = Engine(adapters={"retrieval": RETRIEVAL})
    catalog = Catalog(engine, Prompts())  # type: ignore[arg-type]
    instruction = Instruction(task="retrieval", role=Role.QUERY)
    before = catalog.route(instruction, 32, Encoding.FLOAT32)
    engine.adapters = {"retrieval": make_adapter(7, "retrieval", prompts=RETRIEVAL.prompts, digest="other")}
    after = catalog.route(instruction, 32, Encoding.FLOAT32)
    assert after.adapter == 7
    assert after.space != before.space


def test_a_model_with_prompts_serves_retrieval_without_an_adapter() -> None:
    catalog = make_catalog(prompts=Prompts({"query": "q: ", "passage": "p: "}))
    route = catalog.route(Instruction(task="retrieval", role=Role.DOCUMENT), 32, Encoding.FLOAT32)
    assert (route.adapter, route.prompt) == (BASE_MODEL, "p: ")
    assert [task.name for task in catalog.tasks()] == ["retrieval"]


def test_the_default_prompt_is_used_when_nothing_is_named() -> None:
    catalog = make_catalog(prompts=Prompts({"query": "q: ", "document": "d: "}, default_name="document"))
    assert catalog.route(Instruction(), 32, Encoding.FLOAT32).prompt == "d: "


@pytest.mark.parametrize(
    ("instruction", "encoding", "error", "words"),
    [
        (Instruction(task="poetry"), Encoding.FLOAT32, NotFound, "'poetry' is not served; this server has: retrieval"),
        (Instruction(adapter="x"), Encoding.FLOAT32, NotFound, "'x' is not loaded; loaded: retrieval, text-matching"),
        (Instruction(prompt_name="x"), Encoding.FLOAT32, NotFound, "prompt 'x' is not known here; known: none"),
        (Instruction(task="retrieval"), Encoding.FLOAT32, InvalidRequest, "set role to query or document"),
        (
            Instruction(task="retrieval_query", role=Role.DOCUMENT),
            Encoding.FLOAT32,
            InvalidRequest,
            "means role 'query'",
        ),
        (
            Instruction(task="text-matching", adapter="retrieval"),
            Encoding.FLOAT32,
            InvalidRequest,
            "name one of the two",
        ),
        (Instruction(task="text-matching"), Encoding.INT8, InvalidRequest, "has none for 32 dimensions; it has: none"),
    ],
)
def test_refusals_say_what_would_work(
    instruction: Instruction, encoding: Encoding, error: type[EmbedmuxError], words: str
) -> None:
    with pytest.raises(error, match=words):
        make_catalog(RETRIEVAL, MATCHING).route(instruction, 32, encoding)


def test_two_adapters_of_one_task_need_a_name() -> None:
    first, second = make_adapter(0, "a", task="retrieval"), make_adapter(1, "b", task="retrieval")
    with pytest.raises(InvalidRequest, match="several adapters; name one of them: a, b"):
        make_catalog(first, second).route(Instruction(task="retrieval"), 32, Encoding.FLOAT32)


@pytest.mark.parametrize("asked", [33, 1000])
def test_dimensions_above_the_model_are_refused(asked: int) -> None:
    with pytest.raises(InvalidRequest, match=f"dimensions is {asked}; the model's vectors have 32"):
        make_catalog().dimensions(asked)


@pytest.mark.parametrize(("asked", "given"), [(None, 32), (0, 32), (1, 1), (32, 32)])
def test_no_dimensions_are_the_model_s(asked: int | None, given: int) -> None:
    assert make_catalog().dimensions(asked) == given
