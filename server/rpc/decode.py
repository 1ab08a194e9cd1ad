"""Bytes of the wire -> message, or the InvalidRequest that says which field is wrong.

gRPC answers a request that it cannot read with a status that names nothing. Here such a request becomes its own error,
which calls.py and stream.py raise where they would have used the message.
"""

from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from embedmux.server.errors import InvalidRequest

_Field = descriptor_pb2.FieldDescriptorProto


def decoder(descriptor: Any) -> Callable[[bytes], Any]:
    """A deserializer for messages of ``descriptor``; returns, never raises, InvalidRequest."""
    parse = message_factory.GetMessageClass(descriptor).FromString

    def decode(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError as error:
            return _explain(descriptor, raw, error)

    return decode


def _explain(descriptor: Any, raw: bytes, error: DecodeError) -> InvalidRequest:
    """Reads the request again with every string as bytes: if that works, one of the strings was the fault."""
    try:
        loose = _without_strings(descriptor).FromString(raw)
    except DecodeError:
        loose = None
    fault = None if loose is None else _bad_string(descriptor, loose, path="")
    if fault is not None:
        return InvalidRequest(f"{fault}; send text encoded as UTF-8")
    return InvalidRequest(
        f"the {len(raw)} bytes of the request are no {descriptor.full_name} ({error}); "
        "check that client and server were built from the same .proto files"
    )


def _without_strings(descriptor: Any) -> Any:
    """The message's class with every string field turned into bytes, which protobuf does not validate."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: Any) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        copy = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(copy)
        for message in copy.message_type:
            for field in message.field:
                if field.type == _Field.TYPE_STRING:
                    field.type = _Field.TYPE_BYTES
        pool.Add(copy)

    add(descriptor.file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _bad_string(descriptor: Any, loose: Any, *, path: str) -> str | None:
    """The first string field that is not UTF-8, with its path and the offending byte; ``None`` if all are."""
    for field, value in loose.ListFields():
        original = descriptor.fields_by_name[field.name]
        for index, item in enumerate(value if field.is_repeated else [value]):
            place = f"{path}{field.name}[{index}]" if field.is_repeated else f"{path}{field.name}"
            if original.type == _Field.TYPE_MESSAGE and not original.message_type.GetOptions().map_entry:
                fault = _bad_string(original.message_type, item, path=f"{place}.")
                if fault is not None:
                    return fault
            elif original.type == _Field.TYPE_STRING:
                try:
                    item.decode()
                except UnicodeDecodeError as error:
                    return f"{place} is not valid UTF-8: byte 0x{item[error.start]:02x} at offset {error.start}"
    return None
