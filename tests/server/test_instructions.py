"""Free instructions: on the query side, through the model's own template, or refused with what would have worked."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from embedmux.server.catalog import Catalog
from embedmux.server.contract import Contract, Prompts
from embedmux.server.errors import InvalidRequest
from embedmux.server.facts import ModelInfo
from embedmux.server.records import Encoding, OutputSpec, Pooling, Role
from embedmux.server.requests import Instruction

MODEL = ModelInfo("tiny", "b" * 64, "bert", 32, 64, "mean", "float32", "cpu", {}, {}, "none")
CONTRACT = Contract("test", "bert", 64, Pooling.MEAN, (32,))
FULL = OutputSpec(32, Encoding.FLOAT32)
QWEN = replace(
    CONTRACT,
    prompts=Prompts({"query": "Instruct: find\nQuery:", "document": ""}),
    template="Instruct: {instruction}\nQuery:",
)
DOCUMENT = Instruction(task="retrieval", role=Role.DOCUMENT)


def make_catalog(contract: Contract) -> Catalog:
    return Catalog(SimpleNamespace(model=MODEL, adapters={}), contract)  # type: ignore[arg-type]


def test_a_free_instruction_is_a_query_comparable_with_plain_documents() -> None:
    catalog = make_catalog(QWEN)
    for instruction in (
        Instruction(instruction="match {query}"),
        Instruction(task="retrieval", instruction="match {query}"),
        Instruction(role=Role.QUERY, instruction="match {query}"),
    ):
        route = catalog.route(instruction, FULL)
        assert route.prompt == "Instruct: match {query}\nQuery:"
        assert route.role is Role.QUERY
        assert route.space == catalog.route(DOCUMENT, FULL).space


@pytest.mark.parametrize(
    ("instruction", "words"),
    [
        (Instruction(instruction="x", role=Role.DOCUMENT), "stands before queries only, the text's role is 'document'"),
        (Instruction(instruction="x", task="retrieval.passage"), "leave it out for documents"),
        (Instruction(instruction="x", prompt="y"), "an instruction and a prompt; name one of them"),
        (Instruction(instruction="x", prompt_name="query"), "an instruction and a prompt; name one of them"),
        (Instruction(instruction=""), "the instruction is empty; leave it out"),
    ],
)
def test_what_a_free_instruction_cannot_be(instruction: Instruction, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_catalog(QWEN).route(instruction, FULL)


def test_a_family_without_a_template_refuses_instructions() -> None:
    with pytest.raises(InvalidRequest, match="'test' have no template for a free instruction; send the literal prefix"):
        make_catalog(CONTRACT).route(Instruction(instruction="x"), FULL)


def test_a_pooling_that_leaves_prompts_out_refuses_them() -> None:
    catalog = make_catalog(replace(CONTRACT, takes_prompts=False))
    assert catalog.route(Instruction(prompt=""), FULL).prompt == ""
    with pytest.raises(InvalidRequest, match="send the text without one"):
        catalog.route(Instruction(prompt="x: "), FULL)
