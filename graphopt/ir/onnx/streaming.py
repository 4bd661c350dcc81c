"""Writing a ModelProto into a file without having its large tensors in memory, byte for byte as protobuf does.

A protobuf message is its fields one after the other, each with its length in front. So everything but the data of
large tensors is serialised by protobuf, and what it would have written around the data is written here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import onnx
import onnx_ir as ir

_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


def write_proto(proto: onnx.ModelProto, large: Mapping[str, ir.TensorProtocol], file: BinaryIO) -> None:
    """Write `proto`, in whose main graph the initialisers named in `large` have no data, with that data."""
    head, tail = _around(proto, _GRAPH)
    before, after = _around(proto.graph, _INITIALIZER)
    tensors = [(_frame(t, large.get(t.name)), large.get(t.name)) for t in proto.graph.initializer]
    size = len(before) + len(after)
    size += sum(len(a) + len(b) + (0 if data is None else data.nbytes) for (a, b), data in tensors)
    file.write(head + _key(_GRAPH, size) + before)
    for (opening, closing), data in tensors:
        file.write(opening)
        if data is not None:
            stream(data, file)
        file.write(closing)
    file.write(after + tail)


def stream(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Write the data of `tensor` as ONNX stores it: little-endian, small types packed."""
    expected = file.tell() + tensor.nbytes
    tofile = getattr(tensor, "tofile", None)
    if tofile is None:
        file.write(tensor.tobytes())
    else:
        tofile(file)
    if file.tell() != expected:
        raise OSError(f"tensor {tensor.name!r}: {tensor.nbytes} bytes were to be written, and not all of them were")


def _frame(tensor: onnx.TensorProto, data: ir.TensorProtocol | None) -> tuple[bytes, bytes]:
    """What stands in front of the data of an initialiser and behind it."""
    if data is None:
        whole = tensor.SerializeToString()
        return _key(_INITIALIZER, len(whole)) + whole, b""
    before, after = _around(tensor, _RAW_DATA)
    before += _key(_RAW_DATA, data.nbytes)
    return _key(_INITIALIZER, len(before) + data.nbytes + len(after)) + before, after


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """The fields of `message` below and above a field number, serialised; protobuf writes them in this order."""
    fields = [descriptor for descriptor, _ in message.ListFields()]
    parts = []
    for dropped in ([f for f in fields if f.number >= number], [f for f in fields if f.number <= number]):
        part = type(message)()
        part.CopyFrom(message)
        for field in dropped:
            part.ClearField(field.name)
        parts.append(part.SerializeToString())
    return parts[0], parts[1]


def _key(number: int, length: int) -> bytes:
    """The key and the length of a field that is delimited by its length."""
    return bytes([*_varint(number << 3 | 2), *_varint(length)])


def _varint(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value
