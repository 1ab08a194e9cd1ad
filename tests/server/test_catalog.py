"""Instructions resolve to exactly one adapter, prompt and space, or are refused with what would have worked."""

from dataclasses import dataclass, field, replace

import pytest

from embedmux.server.catalog import Catalog
from embedmux.server.contract import Contract, Prompts
from embedmux.server.errors import EmbedmuxError, InvalidRequest, NotFound
from embedmux.server.facts import AdapterInfo, ModelInfo
from embedmux.server.records import BASE_MODEL, Encoding, OutputSpec, Pooling, Role
from embedmux.server.requests import Instruction

MODEL = ModelInfo("tiny", "b" * 64, "bert", 32, 64, "mean", "float32", "cpu", {32: "base-ranges"}, {}, "none")
CONTRACT = Contract("test", "bert", 64, Pooling.MEAN, (32, 16))
FULL = OutputSpec(32, Encoding.FLOAT32)
SMALL = OutputSpec(16, Encoding.FLOAT32)
E5 = Prompts({"query": "q: ", "passage": "p: "})
JINA = Prompts({"query": "Query: ", "document": "Document: "}, default_name="document")
QWEN = replace(
    CONTRACT,
    prompts=Prompts({"query": "Instruct: find\nQuery:", "document": ""}),
    template="Instruct: {instruction}\nQuery:",
)


def make_adapter(handle: int, name: str, **facts: object) -> AdapterInfo:
    values = {"task": name, "prompts": {}, "calibrations": {}, "digest": name * 8} | facts
    return AdapterInfo(handle=handle, id=name, max_rank=4, num_bytes=1, num_targets=1, **values)  # type: ignore[arg-type]


@dataclass
class Engine:
    """The two facts the catalogue reads."""

    model: ModelInfo = MODEL
    adapters: dict[str, AdapterInfo] = field(default_factory=dict)


def make_catalog(*adapters: AdapterInfo, prompts: Prompts | None = None, contract: Contract = CONTRACT) -> Catalog:
    engine = Engine(adapters={adapter.id: adapter for adapter in adapters})
    return Catalog(engine, replace(contract, prompts=prompts) if prompts else contract)  # type: ignore[arg-type]


def spec(encoding: Encoding, dimensions: int = 32) -> OutputSpec:
    return OutputSpec(dimensions, encoding)


RETRIEVAL = make_adapter(
    0, "retrieval", prompts={"query": "query: ", "document": "document: "}, calibrations={16: "ranges"}
)
MATCHING = make_adapter(1, "text-matching")
SIDES = (
    make_adapter(3, "retrieval.query", prompts={"query": "find: "}),
    make_adapter(4, "retrieval.passage", prompts={"document": "hold: "}),
)
QUERY = Instruction(task="retrieval", role=Role.QUERY)
DOCUMENT = Instruction(task="retrieval", role=Role.DOCUMENT)


def test_nothing_named_is_the_bare_model() -> None:
    route = make_catalog(RETRIEVAL).route(Instruction(), FULL)
    assert (route.adapter, route.adapter_id, route.prompt, route.role) == (BASE_MODEL, "", "", None)


def test_query_and_document_share_a_space_and_differ_in_prompt() -> None:
    catalog = make_catalog(RETRIEVAL, MATCHING)
    query, document = catalog.route(QUERY, FULL), catalog.route(DOCUMENT, FULL)
    assert (query.prompt, document.prompt) == ("query: ", "document: ")
    assert (query.role, document.role) == (Role.QUERY, Role.DOCUMENT)
    assert query.space == document.space
    assert query.adapter == document.adapter == 0


@pytest.mark.parametrize(
    "other",
    [
        (Instruction(task="text-matching"), FULL),
        (Instruction(), FULL),
        (QUERY, SMALL),
        (Instruction(task="retrieval", role=Role.QUERY, prompt="find: "), FULL),
    ],
)
def test_task_size_and_free_prompt_change_the_space(other: tuple[Instruction, OutputSpec]) -> None:
    catalog = make_catalog(RETRIEVAL, MATCHING)
    assert catalog.route(*other).space != catalog.route(QUERY, FULL).space


def test_encoding_does_not_change_the_space_but_calibration_is_told() -> None:
    catalog = make_catalog(RETRIEVAL)
    assert catalog.route(QUERY, spec(Encoding.BINARY, 16)).space == catalog.route(QUERY, SMALL).space
    assert catalog.route(QUERY, spec(Encoding.INT8, 16)).space.calibration == "ranges"
    assert catalog.route(Instruction(), spec(Encoding.UINT8)).space.calibration == "base-ranges"


@pytest.mark.parametrize(
    ("alias", "adapter", "prompt"),
    [("retrieval_query", 0, "query: "), ("retrieval.passage", 0, "document: "), ("similarity", 1, "")],
)
def test_aliases_carry_task_and_role(alias: str, adapter: int, prompt: str) -> None:
    route = make_catalog(RETRIEVAL, MATCHING).route(Instruction(task=alias), FULL)
    assert (route.adapter, route.prompt) == (adapter, prompt)


def test_a_changed_adapter_takes_effect_at_once() -> None:
    engine = Engine(adapters={"retrieval": RETRIEVAL})
    catalog = Catalog(engine, CONTRACT)  # type: ignore[arg-type]
    before = catalog.route(QUERY, FULL)
    engine.adapters = {"retrieval": make_adapter(7, "retrieval", prompts=RETRIEVAL.prompts, digest="other")}
    after = catalog.route(QUERY, FULL)
    assert after.adapter == 7
    assert after.space != before.space


def test_a_model_with_prompts_serves_retrieval_without_an_adapter() -> None:
    catalog = make_catalog(prompts=E5)
    route = catalog.route(DOCUMENT, FULL)
    assert (route.adapter, route.prompt) == (BASE_MODEL, "p: ")
    assert [task.name for task in catalog.tasks()] == ["retrieval"]
    assert catalog.tasks()[0].space == route.space.id


def test_prompts_named_for_a_task_serve_it() -> None:
    prompts = Prompts({"query": "q: ", "document": "d: ", "clustering": "c: "})
    catalog = make_catalog(prompts=prompts)
    assert [(task.name, task.query_prompt, task.document_prompt) for task in catalog.tasks()] == [
        ("clustering", "c: ", "c: "),
        ("retrieval", "q: ", "d: "),
    ]
    route = catalog.route(Instruction(task="clustering"), FULL)
    assert route.prompt == "c: "
    assert route.space.id == catalog.tasks()[0].space != catalog.tasks()[1].space
    with pytest.raises(NotFound, match="'classification' is not served"):
        catalog.route(Instruction(task="classification"), FULL)


def test_prompts_of_tasks_go_by_their_aliases_too() -> None:
    prompts = Prompts({"query": "q: ", "document": "d: ", "STS": "s: ", "Clustering": "c: "})
    catalog = make_catalog(prompts=prompts)
    assert [task.name for task in catalog.tasks()] == ["clustering", "retrieval", "text-matching"]
    for task, prompt in (("similarity", "s: "), ("sts", "s: "), ("separation", "c: ")):
        assert catalog.route(Instruction(task=task), FULL).prompt == prompt
    separate = make_catalog(make_adapter(0, "separation", prompts={"separation": "apart: "}))
    assert separate.route(Instruction(task="clustering"), FULL).prompt == "apart: "


def test_the_default_prompt_is_used_when_nothing_is_named() -> None:
    catalog = make_catalog(prompts=JINA)
    assert catalog.route(Instruction(), FULL).prompt == "Document: "


def test_a_checkpoint_s_default_prompt_holds_for_its_tasks_too() -> None:
    catalog = make_catalog(make_adapter(0, "retrieval", task=None), make_adapter(1, "clustering"), prompts=JINA)
    for instruction in (
        Instruction(task="clustering"),
        Instruction(task="retrieval"),
        Instruction(adapter="retrieval"),
    ):
        assert catalog.route(instruction, FULL).prompt == "Document: "
    assert catalog.route(Instruction(task="clustering", role=Role.QUERY), FULL).prompt == "Query: "


def test_sides_must_be_named_where_no_default_says_which() -> None:
    catalog = make_catalog(make_adapter(0, "retrieval", task=None), prompts=E5)
    for instruction in (Instruction(task="retrieval"), Instruction(adapter="retrieval")):
        with pytest.raises(InvalidRequest, match="set role to query or document"):
            catalog.route(instruction, FULL)


def test_an_adapter_without_a_task_of_its_own_has_that_of_its_name() -> None:
    catalog = make_catalog(make_adapter(0, "retrieval", task=None), prompts=Prompts({"retrieval": "r: "}))
    named = catalog.route(Instruction(adapter="retrieval"), FULL)
    assert named.prompt == "r: "
    assert named == catalog.route(Instruction(task="retrieval"), FULL)


def test_a_prompt_of_one_side_lies_in_that_side_s_space_however_it_is_named() -> None:
    catalog = make_catalog(prompts=E5)
    space = catalog.route(DOCUMENT, FULL).space
    assert catalog.route(Instruction(prompt_name="passage"), FULL).space == space
    assert catalog.route(Instruction(prompt="p: "), FULL).space == space
    assert catalog.route(Instruction(role=Role.QUERY), FULL).space == space
    assert catalog.route(Instruction(prompt="x: "), FULL).space != space
    assert catalog.route(Instruction(), FULL).space != space  # no prompt at all is neither side
    plain = make_catalog(contract=QWEN)
    assert plain.route(Instruction(), FULL).space == plain.route(DOCUMENT, FULL).space  # a document has no prompt


def test_the_sides_of_a_task_may_have_adapters_of_their_own_in_one_space() -> None:
    catalog = make_catalog(*SIDES, MATCHING)
    query, document = catalog.route(QUERY, FULL), catalog.route(DOCUMENT, FULL)
    assert (query.adapter, document.adapter) == (3, 4)
    assert (query.prompt, document.prompt) == ("find: ", "hold: ")
    assert query.space == document.space
    named = catalog.route(Instruction(adapter="retrieval.passage"), FULL)
    assert named == document
    assert [(task.name, task.adapter) for task in catalog.tasks()] == [
        ("retrieval", "retrieval.query, retrieval.passage"),
        ("text-matching", "text-matching"),
    ]
    assert catalog.tasks()[0].space == query.space.id


def test_an_adapter_s_role_may_be_told_apart_from_its_name() -> None:
    sides = [make_adapter(n, name, task="retrieval", role=name) for n, name in enumerate(("query", "document"))]
    catalog = make_catalog(*sides)
    assert catalog.route(QUERY, FULL).adapter == 0
    assert catalog.route(DOCUMENT, FULL).adapter == 1
    assert catalog.route(QUERY, FULL).space == catalog.route(DOCUMENT, FULL).space


def test_another_document_adapter_is_another_space_for_queries_too() -> None:
    changed = replace(SIDES[1], digest="other")
    spaces = {make_catalog(SIDES[0], other).route(QUERY, FULL).space for other in (SIDES[1], changed)}
    assert len(spaces) == 2


@pytest.mark.parametrize(
    ("instruction", "error", "words"),
    [
        (Instruction(task="retrieval"), InvalidRequest, "one adapter for queries and another for documents; set role"),
        (
            Instruction(adapter="retrieval.query", role=Role.DOCUMENT),
            InvalidRequest,
            "made for role 'query', the text has role 'document'; name the task",
        ),
    ],
)
def test_sides_are_not_mixed_up(instruction: Instruction, error: type[EmbedmuxError], words: str) -> None:
    with pytest.raises(error, match=words):
        make_catalog(*SIDES).route(instruction, FULL)


def test_a_missing_side_is_named() -> None:
    with pytest.raises(NotFound, match=r"no adapter for role 'document'; loaded for it: retrieval\.query"):
        make_catalog(SIDES[0]).route(DOCUMENT, FULL)


def test_a_model_that_needs_a_task_is_not_served_bare() -> None:
    contract = replace(CONTRACT, prompts=JINA, needs_task=True)
    catalog = make_catalog(MATCHING, contract=contract)
    assert catalog.route(Instruction(task="text-matching"), FULL).prompt == "Document: "
    assert [task.name for task in catalog.tasks()] == ["text-matching"]
    for instruction in (Instruction(), Instruction(role=Role.QUERY), Instruction(prompt="x")):
        with pytest.raises(InvalidRequest, match="without an adapter, the text names no task; name one of: text-match"):
            catalog.route(instruction, FULL)
    with pytest.raises(NotFound, match="'retrieval' is not served; this server has: text-matching"):
        catalog.route(QUERY, FULL)


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
        make_catalog(RETRIEVAL, MATCHING).route(instruction, spec(encoding))


def test_two_adapters_of_one_task_need_a_name() -> None:
    first, second = make_adapter(0, "a", task="retrieval"), make_adapter(1, "b", task="retrieval")
    catalog = make_catalog(first, second)
    with pytest.raises(InvalidRequest, match="several adapters; name one of them: a, b"):
        catalog.route(Instruction(task="retrieval"), FULL)
    assert [(task.name, task.adapter) for task in catalog.tasks()] == [("retrieval", "a"), ("retrieval", "b")]
