"""Reading .caffemodel files: Caffe's NetParameter in protobuf's wire format, as far as weights need it.

Looked at are the layers' names, arrays and strides; every other field is skipped. The file stays mapped from disk and
nothing of it is copied before it is asked for, so a file that lies about its sizes costs no memory. Field numbers:
BVLC/caffe, src/caffe/proto/caffe.proto. Encoding: protobuf's documentation, "Encoding".
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ohem.errors import DataError, Fault

MAX_FIELDS = 200_000
"""A file of more fields is refused: the largest of Caffe's networks have some ten thousand."""

MAX_NAME_BYTES = 200
MAX_DIMENSIONS = 32  # Caffe's own limit, kMaxBlobAxes
_WHOLE = "a whole .caffemodel file"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTH = {_FIXED64: 8, _FIXED32: 4}
_FLOAT = np.dtype("<f4")
_DOUBLE = np.dtype("<f8")


@dataclass(frozen=True, eq=False)
class Blob:
    """One array of a layer, in the file.

    Attributes:
        shape: as the file has it; always four numbers in older files.
        parts: its values in order, float32 or float64, as views of the mapped file.
    """

    shape: tuple[int, ...]
    parts: tuple[NDArray[Any], ...]

    def read(self) -> Tensor:
        """A float32 copy in the file's shape."""
        values = np.empty(math.prod(self.shape), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            np.concatenate(self.parts, out=values, casting="same_kind")
        return torch.from_numpy(values).view(self.shape)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that has weights.

    Attributes:
        name: printable.
        blobs: weights and biases, in Caffe's order.
        strides: of a convolution, all that the file states, or Caffe's default of 1; None where it is no convolution.
    """

    name: str
    blobs: tuple[Blob, ...]
    strides: frozenset[int] | None


@dataclass(frozen=True)
class _LayerFields:
    """Field numbers within a layer."""

    name: int
    blobs: int
    convolution: int


_LAYERS = {100: _LayerFields(1, 7, 106), 2: _LayerFields(4, 6, 10)}
"""NetParameter's ``layer``, a LayerParameter, and the older ``layers``, a V1LayerParameter."""

_STRIDES = (6, 13, 14)  # ConvolutionParameter's stride, stride_h, stride_w
_LEGACY_SHAPE = (1, 2, 3, 4)  # BlobProto's num, channels, height, width
_SHAPE, _DATA, _DOUBLE_DATA = 7, 5, 8


def read_caffemodel(path: Path) -> list[Layer]:
    """The layers with weights of a binary .caffemodel file, in the file's order.

    Raises:
        OhemError: missing, damaged, something else, or an array whose shape and number of values disagree.
    """
    file = _File(path)
    layers = [
        _read_layer(file, field, _LAYERS[field.number])
        for field in file.fields(0, len(file.bytes))
        if field.number in _LAYERS
    ]
    layers = [layer for layer in layers if layer.blobs]
    if not layers:
        raise file.fault("", "no layers with weights")
    return layers


@dataclass(frozen=True)
class _Field:
    """One field of a message.

    Attributes:
        number: what it is.
        wire: how it is encoded.
        value: of a varint, else 0.
        start: of its bytes in the file.
        end: behind them. Fixed-width fields that follow each other under one number are one field here, tags between.
    """

    number: int
    wire: int
    value: int
    start: int
    end: int


class _File:
    """A protobuf file, mapped from disk.

    Attributes:
        bytes: the whole file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes: NDArray[np.uint8] = _map(path)
        self._memory = self.bytes.data  # whose items are Python's integers
        self._fields_left = MAX_FIELDS

    def fault(self, where: str, found: str, allowed: str = _WHOLE) -> DataError:
        """What is wrong with the file; of a file of text (HTML, a .prototxt), that it is one."""
        start = bytes(self._memory[:40])
        if start[0] > 0x20 and start.isascii() and start.translate(None, b"\t\r\n").decode().isprintable():
            where, found = "", f"a file of text, beginning with {start.decode()!r}"
        return DataError([Fault(self.path, where, found, allowed)])

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """The fields of the message between two bytes."""
        position = start
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise self.fault(f"byte {position}", f"more than {MAX_FIELDS} fields")
            tag, begin = self._varint(position, end)
            number, wire, value, stop = tag >> 3, tag & 7, 0, begin
            if not 0 < number < 2**29:
                raise self.fault(f"byte {position}", f"a field number of {number}")
            if wire == _VARINT:
                value, stop = self._varint(begin, end)
            elif wire == _BYTES:
                length, begin = self._varint(begin, end)
                stop = begin + length
            elif wire in _WIDTH:
                stop = begin + _WIDTH[wire]
            else:
                raise self.fault(f"byte {position}", f"a field of wire type {wire}")
            if stop > end:
                raise self.fault(f"byte {position}", f"a field of {stop - begin} bytes where {end - begin} are left")
            if wire in _WIDTH and begin == position + 1:
                stop += self._repeats(tag, stop, end, _WIDTH[wire]) * (_WIDTH[wire] + 1)
            yield _Field(number, wire, value, begin, stop)
            position = stop

    def message(self, field: _Field) -> Iterator[_Field]:
        """The fields of a message within a message."""
        self._require(field, _BYTES)
        return self.fields(field.start, field.end)

    def name(self, field: _Field) -> str:
        """A short text."""
        self._require(field, _BYTES)
        if field.end - field.start > MAX_NAME_BYTES:
            raise self.fault(f"byte {field.start}", f"a name of {field.end - field.start} bytes")
        text = bytes(self._memory[field.start : field.end]).decode(errors="replace")
        if not text.isprintable():
            raise self.fault(f"byte {field.start}", "a name that cannot be printed")
        return text

    def integer(self, field: _Field) -> int:
        """An int64."""
        self._require(field, _VARINT)
        return _signed(field.value)

    def integers(self, field: _Field) -> list[int]:
        """One int64, or several, packed: a few, such as dimensions."""
        if field.wire == _VARINT:
            return [self.integer(field)]
        self._require(field, _BYTES)
        values: list[int] = []
        position = field.start
        while position < field.end:
            if len(values) == MAX_DIMENSIONS:
                raise self.fault(f"byte {position}", f"more than {MAX_DIMENSIONS} dimensions")
            value, position = self._varint(position, field.end)
            values.append(_signed(value))
        return values

    def numbers(self, field: _Field, kind: np.dtype[Any]) -> NDArray[Any]:
        """Floats, packed or each behind a tag, as a view of the file."""
        stretch = self.bytes[field.start : field.end]
        if field.wire in _WIDTH and _WIDTH[field.wire] == kind.itemsize:
            if len(stretch) == kind.itemsize:
                return stretch.view(kind)
            tagged = np.dtype([("tag", np.uint8), ("value", kind)])
            values: NDArray[Any] = self.bytes[field.start - 1 : field.end].view(tagged)["value"]
            return values
        self._require(field, _BYTES)
        if len(stretch) % kind.itemsize:
            raise self.fault(f"byte {field.start}", f"{len(stretch)} bytes of values of {kind.itemsize}")
        return stretch.view(kind)

    def _require(self, field: _Field, wire: int) -> None:
        if field.wire != wire:
            raise self.fault(f"byte {field.start}", f"field {field.number} with wire type {field.wire}, not {wire}")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for index in range(10):
            if position + index >= end:
                raise self.fault(f"byte {position}", "a number that is cut short")
            byte = self._memory[position + index]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & (2**64 - 1), position + index + 1
        raise self.fault(f"byte {position}", "a number of more than 10 bytes")

    def _repeats(self, tag: int, start: int, end: int, width: int) -> int:
        """How many times this tag of one byte follows with a whole value, from ``start`` on and without a gap."""
        tags = self.bytes[start : max(end - width, start) : width + 1]
        done, step = 0, 64
        while done < len(tags):
            # In growing steps: looking at all that is left each time would take quadratic time.
            other = np.flatnonzero(tags[done : done + step] != tag)
            if len(other):
                return done + int(other[0])
            done, step = done + step, 2 * step
        return len(tags)


def _map(path: Path) -> NDArray[np.uint8]:
    if not path.is_file():
        found = "no such file"
    elif path.stat().st_size == 0:
        found = "an empty file"
    else:
        try:
            return np.asarray(np.memmap(path, np.uint8, "r"))
        except OSError as error:
            found = f"no readable file ({error.strerror})"
    raise DataError([Fault(path, "", found, _WHOLE)])


def _signed(value: int) -> int:
    """The int64 whose two's complement a varint is."""
    return value - 2**64 if value >= 2**63 else value


def _read_layer(file: _File, field: _Field, numbers: _LayerFields) -> Layer:
    name, blobs, strides, is_convolution = "", [], [], False
    for part in file.message(field):
        if part.number == numbers.name:
            name = file.name(part)
        elif part.number == numbers.blobs:
            blobs.append(part)
        elif part.number == numbers.convolution:
            is_convolution = True
            strides += [n for inner in file.message(part) if inner.number in _STRIDES for n in file.integers(inner)]
    return Layer(
        name,
        tuple(_read_blob(file, blob, f"{name}.blobs[{i}]") for i, blob in enumerate(blobs)),
        frozenset(strides or [1]) if is_convolution else None,
    )


def _read_blob(file: _File, field: _Field, where: str) -> Blob:
    legacy: dict[int, int] = {}
    shape: list[int] = []
    floats: list[NDArray[Any]] = []
    doubles: list[NDArray[Any]] = []
    for part in file.message(field):
        if part.number in _LEGACY_SHAPE:
            legacy[part.number] = file.integer(part)
        elif part.number == _SHAPE:
            shape += [n for inner in file.message(part) if inner.number == 1 for n in file.integers(inner)]
        elif part.number == _DATA:
            floats.append(file.numbers(part, _FLOAT))
        elif part.number == _DOUBLE_DATA:
            doubles.append(file.numbers(part, _DOUBLE))
    # Where both are there, Caffe takes the older shape, and the doubles.
    dims = tuple(legacy.get(number, 0) for number in _LEGACY_SHAPE) if legacy else tuple(shape)
    parts = doubles if sum(map(len, doubles)) else floats
    count = sum(map(len, parts))
    if len(dims) > MAX_DIMENSIONS:
        raise file.fault(where, f"{len(dims)} dimensions", f"at most {MAX_DIMENSIONS}")
    if any(size < 1 for size in dims) or math.prod(dims) != count:
        raise file.fault(where, f"shape {dims} and {count} values", "sizes from 1, and as many values as they say")
    return Blob(dims, tuple(parts))
