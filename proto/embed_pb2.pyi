from embedmux.proto import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Text(_message.Message):
    __slots__ = ("text", "instruction")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    text: str
    instruction: _types_pb2.Instruction
    def __init__(self, text: _Optional[str] = ..., instruction: _Optional[_Union[_types_pb2.Instruction, _Mapping]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("texts", "instruction", "dimensions", "encoding", "truncate", "model", "request_id", "outputs", "force_dimensions", "echo")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    FORCE_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    ECHO_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedCompositeFieldContainer[Text]
    instruction: _types_pb2.Instruction
    dimensions: int
    encoding: _types_pb2.Encoding
    truncate: _types_pb2.Truncate
    model: str
    request_id: str
    outputs: _containers.RepeatedScalarFieldContainer[_types_pb2.Output]
    force_dimensions: bool
    echo: bool
    def __init__(self, texts: _Optional[_Iterable[_Union[Text, _Mapping]]] = ..., instruction: _Optional[_Union[_types_pb2.Instruction, _Mapping]] = ..., dimensions: _Optional[int] = ..., encoding: _Optional[_Union[_types_pb2.Encoding, str]] = ..., truncate: _Optional[_Union[_types_pb2.Truncate, str]] = ..., model: _Optional[str] = ..., request_id: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[_types_pb2.Output, str]]] = ..., force_dimensions: bool = ..., echo: bool = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("vectors", "row_bytes", "encoding", "dimensions", "num_tokens", "num_tokens_original", "space_index", "spaces", "errors", "request_id", "failure", "sparse_lengths", "sparse_ids", "sparse_weights", "token_rows", "token_dimensions", "token_vectors", "rendered")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_ORIGINAL_FIELD_NUMBER: _ClassVar[int]
    SPACE_INDEX_FIELD_NUMBER: _ClassVar[int]
    SPACES_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    SPARSE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    SPARSE_IDS_FIELD_NUMBER: _ClassVar[int]
    SPARSE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_VECTORS_FIELD_NUMBER: _ClassVar[int]
    RENDERED_FIELD_NUMBER: _ClassVar[int]
    vectors: bytes
    row_bytes: int
    encoding: _types_pb2.Encoding
    dimensions: int
    num_tokens: _containers.RepeatedScalarFieldContainer[int]
    num_tokens_original: _containers.RepeatedScalarFieldContainer[int]
    space_index: _containers.RepeatedScalarFieldContainer[int]
    spaces: _containers.RepeatedCompositeFieldContainer[_types_pb2.Space]
    errors: _containers.RepeatedCompositeFieldContainer[_types_pb2.TextError]
    request_id: str
    failure: _types_pb2.Failure
    sparse_lengths: _containers.RepeatedScalarFieldContainer[int]
    sparse_ids: bytes
    sparse_weights: bytes
    token_rows: _containers.RepeatedScalarFieldContainer[int]
    token_dimensions: int
    token_vectors: bytes
    rendered: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vectors: _Optional[bytes] = ..., row_bytes: _Optional[int] = ..., encoding: _Optional[_Union[_types_pb2.Encoding, str]] = ..., dimensions: _Optional[int] = ..., num_tokens: _Optional[_Iterable[int]] = ..., num_tokens_original: _Optional[_Iterable[int]] = ..., space_index: _Optional[_Iterable[int]] = ..., spaces: _Optional[_Iterable[_Union[_types_pb2.Space, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_types_pb2.TextError, _Mapping]]] = ..., request_id: _Optional[str] = ..., failure: _Optional[_Union[_types_pb2.Failure, _Mapping]] = ..., sparse_lengths: _Optional[_Iterable[int]] = ..., sparse_ids: _Optional[bytes] = ..., sparse_weights: _Optional[bytes] = ..., token_rows: _Optional[_Iterable[int]] = ..., token_dimensions: _Optional[int] = ..., token_vectors: _Optional[bytes] = ..., rendered: _Optional[_Iterable[str]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("texts", "instruction", "truncate", "model")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedCompositeFieldContainer[Text]
    instruction: _types_pb2.Instruction
    truncate: _types_pb2.Truncate
    model: str
    def __init__(self, texts: _Optional[_Iterable[_Union[Text, _Mapping]]] = ..., instruction: _Optional[_Union[_types_pb2.Instruction, _Mapping]] = ..., truncate: _Optional[_Union[_types_pb2.Truncate, str]] = ..., model: _Optional[str] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("texts", "errors")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedCompositeFieldContainer[TokenizedText]
    errors: _containers.RepeatedCompositeFieldContainer[_types_pb2.TextError]
    def __init__(self, texts: _Optional[_Iterable[_Union[TokenizedText, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[_types_pb2.TextError, _Mapping]]] = ...) -> None: ...

class TokenizedText(_message.Message):
    __slots__ = ("ids", "tokens", "num_tokens_original", "prompt")
    IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_ORIGINAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    num_tokens_original: int
    prompt: str
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[str]] = ..., num_tokens_original: _Optional[int] = ..., prompt: _Optional[str] = ...) -> None: ...
