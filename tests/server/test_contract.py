"""What a contract says of the states that its outputs need."""

import pytest

from embedmux.server.contract import Contract, LateContract
from embedmux.server.records import Output, Pooling

DENSE, SPARSE, TOKENS, SCORE = Output.DENSE, Output.SPARSE, Output.TOKENS, Output.SCORE


def contract(
    *outputs: Output, pooling: Pooling = Pooling.LAST, mask_token: int | None = None, attends: bool = True
) -> Contract:
    late = LateContract(8, mask_token=mask_token, attends_to_expansion=attends) if TOKENS in outputs else None
    return Contract("test", "decoder", 64, pooling, (8,), outputs=outputs, late=late)


@pytest.mark.parametrize(
    ("outputs", "pooled", "shares"),
    [
        ((DENSE,), Pooling.LAST, True),
        ((SCORE,), Pooling.LAST, True),
        ((DENSE, SPARSE, TOKENS), None, True),  # a request for the dense vector alone may share
        ((TOKENS,), None, False),
    ],
)
def test_outputs_decide_which_states_are_kept(
    outputs: tuple[Output, ...], pooled: Pooling | None, shares: bool
) -> None:
    made = contract(*outputs)
    assert (made.pooled, made.shares_prefixes) == (pooled, shares)


def test_a_mean_takes_the_states_of_all_tokens() -> None:
    assert contract(DENSE, pooling=Pooling.MEAN).pooled is None


def test_a_mask_token_is_unread_only_where_nobody_attends_to_it() -> None:
    assert contract(TOKENS, mask_token=3, attends=False).unread_token == 3
    assert contract(TOKENS, mask_token=3).unread_token is None
    assert contract(DENSE).unread_token is None
