from embedmux.proto import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RerankRequest(_message.Message):
    __slots__ = ("query", "documents", "instruction", "truncate", "model", "top_n", "echo", "request_id")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    DOCUMENTS_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOP_N_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    query: str
    documents: _containers.RepeatedScalarFieldContainer[str]
    instruction: str
    truncate: _types_pb2.Truncate
    model: str
    top_n: int
    echo: bool
    request_id: str
    def __init__(self, query: _Optional[str] = ..., documents: _Optional[_Iterable[str]] = ..., instruction: _Optional[str] = ..., truncate: _Optional[_Union[_types_pb2.Truncate, str]] = ..., model: _Optional[str] = ..., top_n: _Optional[int] = ..., echo: bool = ..., request_id: _Optional[str] = ...) -> None: ...

class RerankResponse(_message.Message):
    __slots__ = ("results", "errors", "model", "activation", "request_id")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RankedDocument]
    errors: _containers.RepeatedCompositeFieldContainer[_types_pb2.TextError]
    model: str
    activation: str
    request_id: str
    def __init__(self, results: _Optional[_Iterable[_Union[RankedDocument, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_types_pb2.TextError, _Mapping]]] = ..., model: _Optional[str] = ..., activation: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class RankedDocument(_message.Message):
    __slots__ = ("index", "logit", "score", "num_tokens", "num_tokens_original", "rendered")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_ORIGINAL_FIELD_NUMBER: _ClassVar[int]
    RENDERED_FIELD_NUMBER: _ClassVar[int]
    index: int
    logit: float
    score: float
    num_tokens: int
    num_tokens_original: int
    rendered: str
    def __init__(self, index: _Optional[int] = ..., logit: _Optional[float] = ..., score: _Optional[float] = ..., num_tokens: _Optional[int] = ..., num_tokens_original: _Optional[int] = ..., rendered: _Optional[str] = ...) -> None: ...
