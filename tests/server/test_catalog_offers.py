"""Sizes and outputs: what the model declares is given, what it does not is refused by name."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from embedmux.server.catalog import Catalog
from embedmux.server.contract import Contract, LateContract
from embedmux.server.errors import InvalidRequest
from embedmux.server.facts import ModelInfo
from embedmux.server.records import Encoding, Output, OutputSpec, Pooling
from embedmux.server.requests import EmbedJob, Instruction

MODEL = ModelInfo("tiny", "b" * 64, "bert", 32, 64, "mean", "float32", "cpu", {}, {}, "none")
CONTRACT = Contract("test", "bert", 64, Pooling.MEAN, (32, 16))
FULL = OutputSpec(32, Encoding.FLOAT32)


def make_catalog(contract: Contract = CONTRACT) -> Catalog:
    return Catalog(SimpleNamespace(model=MODEL, adapters={}), contract)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [33, 1000, -1])
def test_dimensions_above_the_model_are_refused_even_if_forced(asked: int) -> None:
    for forces in (False, True):
        with pytest.raises(InvalidRequest, match=f"dimensions is {asked}; the model's vectors have 32, ask for 32, 16"):
            make_catalog().dimensions(asked, forces=forces)


@pytest.mark.parametrize(("asked", "given"), [(None, 32), (0, 32), (16, 16), (32, 32)])
def test_no_dimensions_are_the_model_s_and_declared_ones_are_given(asked: int | None, given: int) -> None:
    assert make_catalog().dimensions(asked) == given


def test_undeclared_sizes_are_cut_only_by_force() -> None:
    with pytest.raises(InvalidRequest, match=r"dimensions is 20; the model declares 32, 16; .* set force_dimensions"):
        make_catalog().dimensions(20)
    assert make_catalog().dimensions(20, forces=True) == 20


def test_a_range_of_sizes_is_declared_as_such() -> None:
    catalog = make_catalog(replace(CONTRACT, sizes=(32,), any_size_from=8))
    assert catalog.dimensions(9) == 9
    with pytest.raises(InvalidRequest, match="dimensions is 7; the model declares 32 and any size from 8 to 32"):
        catalog.dimensions(7)


def test_projected_sizes_are_never_cut() -> None:
    catalog = make_catalog(replace(CONTRACT, projections="projections.safetensors"))
    assert catalog.dimensions(16) == 16
    for forces in (False, True):
        with pytest.raises(InvalidRequest, match="are projections, a cut one means nothing; ask for 32, 16"):
            catalog.dimensions(20, forces=forces)


def job(*outputs: Output, encoding: Encoding = Encoding.FLOAT32) -> EmbedJob:
    return EmbedJob(("x",), (Instruction(),), outputs=outputs, encoding=encoding)


M3 = replace(CONTRACT, outputs=(Output.DENSE, Output.SPARSE, Output.TOKENS), late=LateContract(dimensions=12))


def test_outputs_are_given_once_and_in_the_order_of_a_row() -> None:
    found = make_catalog(M3).output(job(Output.TOKENS, Output.DENSE, Output.TOKENS))
    assert found == OutputSpec(32, Encoding.FLOAT32, (Output.DENSE, Output.TOKENS), token_dimensions=12)
    assert make_catalog(M3).output(job(Output.DENSE)) == FULL


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (job(Output.TOKENS), "'tiny' makes no tokens output; it makes: dense"),
        (job(Output.DENSE, Output.SPARSE), "'tiny' makes no sparse output; it makes: dense"),
        (job(), "outputs is empty; ask for one of: dense"),
    ],
)
def test_outputs_that_the_model_does_not_make_are_named(asked: EmbedJob, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_catalog().output(asked)


def test_token_vectors_have_no_calibrated_codes() -> None:
    with pytest.raises(InvalidRequest, match="'int8' needs stored ranges, token vectors have none"):
        make_catalog(M3).output(job(Output.TOKENS, encoding=Encoding.INT8))


def test_token_vectors_alone_live_in_a_space_of_their_own() -> None:
    catalog = make_catalog(M3)
    outputs = [job(Output.DENSE), job(Output.DENSE, Output.TOKENS), job(Output.TOKENS), job(Output.SPARSE)]
    spaces = [catalog.route(Instruction(), catalog.output(each)).space.id for each in outputs]
    assert spaces[0] == spaces[1]
    assert len(set(spaces)) == 3
