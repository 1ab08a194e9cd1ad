"""Request messages: what a text inherits from its call, how lists are split, which names are refused."""

import pytest

from embedmux.client.texts import (
    EmbedOptions,
    Text,
    as_texts,
    embed_request,
    split_requests,
    text_message,
    tokenize_request,
)
from embedmux.proto import types_pb2
from embedmux.server.errors import InvalidRequest

QUERY, DOCUMENT = types_pb2.ROLE_QUERY, types_pb2.ROLE_DOCUMENT


def test_options_of_the_call_stand_once_in_the_request() -> None:
    request = embed_request(
        ["a", "b"], {"task": "retrieval", "role": "query", "dimensions": 64, "encoding": "int8", "truncate": "end"}
    )
    assert [text.text for text in request.texts] == ["a", "b"]
    assert not any(text.HasField("instruction") for text in request.texts)
    assert (request.instruction.task, request.instruction.role) == ("retrieval", QUERY)
    assert request.dimensions == 64
    assert request.encoding == types_pb2.ENCODING_INT8 and request.truncate == types_pb2.TRUNCATE_END


def test_a_text_takes_what_it_leaves_out_from_the_call() -> None:
    options: EmbedOptions = {"task": "retrieval", "role": "document", "adapter": "mine", "prompt": "Say: "}
    request = embed_request([Text("q", role="query"), Text("c", task="classification"), Text("plain")], options)
    first, second, third = (text.instruction for text in request.texts)
    assert (first.task, first.role, first.adapter, first.prompt) == ("retrieval", QUERY, "mine", "Say: ")
    assert (second.task, second.role, second.adapter) == ("classification", DOCUMENT, "")
    assert third == request.instruction


def test_a_prompt_by_name_beats_the_prompt_of_the_call() -> None:
    request = embed_request([Text("a", prompt_name="query")], {"prompt": "Say: "})
    assert request.texts[0].instruction.prompt_name == "query"
    assert not request.texts[0].instruction.HasField("prompt")


def test_an_instruction_is_inherited_unless_the_text_names_a_prompt_of_its_own() -> None:
    texts = [Text("a", role="query"), Text("b", instruction="find dogs"), Text("c", prompt_name="document")]
    request = embed_request(texts, {"instruction": "find cats", "task": "retrieval"})
    first, second, third = (text.instruction for text in request.texts)
    assert first.instruction == request.instruction.instruction == "find cats"
    assert second.instruction == "find dogs" and second.task == "retrieval"
    assert third.prompt_name == "document" and not third.HasField("instruction")
    assert not embed_request(["a"], {}).instruction.HasField("instruction")


def test_outputs_are_sent_only_where_they_are_not_the_default() -> None:
    assert list(embed_request(["a"], {}).outputs) == list(embed_request(["a"], {"outputs": ["dense"]}).outputs) == []
    request = embed_request(["a"], {"outputs": ("dense", "tokens"), "force_dimensions": True, "echo": True})
    assert list(request.outputs) == [types_pb2.OUTPUT_DENSE, types_pb2.OUTPUT_TOKENS]
    assert request.force_dimensions and request.echo
    assert list(embed_request(["a"], {"outputs": "sparse"}).outputs) == [types_pb2.OUTPUT_SPARSE]


def test_an_empty_prompt_is_sent_as_no_prefix() -> None:
    assert embed_request(["a"], {"prompt": ""}).instruction.HasField("prompt")
    assert not embed_request(["a"], {}).instruction.HasField("prompt")


def test_long_lists_become_requests_of_batch_size_in_order() -> None:
    requests = list(split_requests([str(number) for number in range(7)], {"task": "t"}, batch_size=3))
    assert [[text.text for text in request.texts] for request in requests] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert all(request.instruction.task == "t" for request in requests)


def test_one_text_is_a_list_of_one() -> None:
    assert as_texts("abc") == ["abc"]
    assert as_texts(Text("abc")) == [Text("abc")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"role": "passage"}, "role is 'passage', it must be one of query, document"),
        ({"encoding": "float64"}, "encoding is 'float64', it must be one of float32, float16"),
        ({"truncate": "middle"}, "truncate is 'middle', it must be one of none, end, start"),
        ({"dimensions": -1}, "dimensions is -1, it must be at least 1"),
        ({"outputs": []}, "outputs is empty; name at least one of dense, sparse, tokens"),
        ({"outputs": ["dense", "score"]}, "outputs is 'score', it must be one of dense, sparse, tokens"),
    ],
)
def test_names_that_mean_nothing_are_refused_before_they_are_sent(options: EmbedOptions, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        embed_request(["a"], options)


def test_a_misspelt_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected option 'taks'"):
        embed_request(["a"], {"taks": "retrieval"})
    with pytest.raises(TypeError, match="unexpected option 'dimensions'"):
        tokenize_request(["a"], {"dimensions": 3})


def test_something_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a text must be a str or a Text, not bytes"):
        embed_request([b"a"], {})


@pytest.mark.parametrize("name", ["text", "task", "prompt", "instruction"])
def test_half_a_surrogate_pair_is_refused_by_name(name: str) -> None:
    fields = {"text": "fine", name: "ab\ud800"}
    with pytest.raises(InvalidRequest, match=rf"{name} holds '\\ud800' at character 2"):
        text_message(Text(**fields), {})


def test_half_a_surrogate_pair_is_found_among_many_texts() -> None:
    with pytest.raises(InvalidRequest, match=r"text 3 holds '\\ud800' at character 1"):
        list(split_requests(["a", "b", "c", "d\ud800"], {}, batch_size=2))
    with pytest.raises(InvalidRequest, match="text 1 holds"):
        tokenize_request(["a", Text("\ud800")], {})
