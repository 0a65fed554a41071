"""Reading cell arrays from MATLAB's files, format 5 to 7, from anybody.

Proposals need three kinds of value: cells, numbers and characters. SciPy's reader knows all kinds, objects and code among
them, and a file of 1 MB that nests cells 20,000 deep overflows its stack and kills the process (SciPy 1.17); here every
size is checked against the bytes that are there, and what is nested or swollen too far is refused.

The format is MathWorks' "MAT-File Format", level 5: a header of 128 bytes, then elements of a tag (kind, bytes) and
data, some of them deflated.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ohem.data.rules import one_line
from ohem.errors import DataError, Fault

MAX_DEPTH = 8
"""Cells inside cells."""

MAX_SWELLING = 20
"""How many times its deflated size a variable may have; boxes shrink to a third or so."""

_ALWAYS_ALLOWED = 2**24
"""Bytes of a variable that may have swollen in any measure."""

_WHOLE = "a whole MATLAB file, format 5 to 7"
_MATRIX, _DEFLATED = 14, 15
_CELL, _CHARACTERS, _NUMBERS = 1, 4, range(6, 16)
_COMPLEX = 0x0800
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {1: "latin-1", 2: "utf-8", 4: "utf-16-", 16: "utf-8", 17: "utf-16-", 18: "utf-32-"}
_KINDS = {2: "a structure", 3: "an object", 5: "a sparse matrix", 16: "a function", 17: "an object"}


class _BrokenError(Exception):
    """What is wrong with the file, in words."""


def read_mat(path: Path, wanted: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The wanted variables that a file has.

    Returns:
        Name -> array: of dtype object for cells, of numbers, or of ``str``, one for each row of characters.

    Raises:
        DataError: not readable, no such file, damaged, or a wanted variable of another kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError([Fault(path, "", error.strerror or str(error), "a readable file")]) from error
    if data[:19] == b"MATLAB 7.3 MAT-file":
        found, allowed = "MATLAB's format 7.3 (HDF5)", "format 7 or older: in MATLAB, save with '-v7'"
        raise DataError([Fault(path, "", found, allowed)])
    try:
        return _Reader(data, wanted).variables()
    except _BrokenError as error:
        raise DataError([Fault(path, "", f"no MATLAB file ({one_line(str(error))})", _WHOLE)]) from error


class _Reader:
    """The elements of one file."""

    def __init__(self, data: bytes, wanted: tuple[str, ...]) -> None:
        if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
            raise _BrokenError("no header of 128 bytes")
        self.data, self.wanted = memoryview(data), wanted
        self.order: Literal["<", ">"] = "<" if data[126:128] == b"IM" else ">"

    def variables(self) -> dict[str, NDArray[Any]]:
        found = {}
        position = 128
        while position < len(self.data):
            kind, content, position = self.element(self.data, position, padded=False)
            if kind == _DEFLATED:
                kind, content, _ = self.element(memoryview(_inflated(content)), 0, padded=False)
            if kind == _MATRIX:
                name, values = self.matrix(content, 0, self.wanted)
                if values is not None:
                    found[name] = values
        return found

    def element(self, data: memoryview, start: int, padded: bool = True) -> tuple[int, memoryview, int]:
        """Kind and content of the element at ``start``, and where the next one begins."""
        if start + 8 > len(data):
            raise _BrokenError("an element that is cut short")
        kind, size = struct.unpack_from(f"{self.order}II", data, start)
        begin, after = start + 8, start + 8 + size
        if kind >> 16:  # up to four bytes, inside the tag
            kind, size = kind & 0xFFFF, kind >> 16
            begin, after = start + 4, start + 8
        if begin + size > len(data) or (begin == start + 4 and size > 4):
            raise _BrokenError(f"an element that claims {size} bytes")
        if padded and after % 8:
            after += 8 - after % 8
        return kind, data[begin : begin + size], after

    def elements(self, data: memoryview, start: int) -> Iterator[tuple[int, memoryview]]:
        while start < len(data):
            kind, content, start = self.element(data, start, padded=True)
            yield kind, content

    def matrix(
        self, data: memoryview, depth: int, wanted: tuple[str, ...] | None = None
    ) -> tuple[str, NDArray[Any] | None]:
        """Name and values; no values where the name is not wanted."""
        if depth > MAX_DEPTH:
            raise _BrokenError(f"cells more than {MAX_DEPTH} deep")
        if not len(data):
            return "", np.empty((0, 0))
        parts = self.elements(data, 0)
        (_, flags), (_, sizes), (_, name) = (next(parts, (0, memoryview(b""))) for _ in range(3))
        label = bytes(name).decode("latin-1")
        if wanted is not None and label not in wanted:
            return label, None
        if len(flags) < 4 or len(sizes) % 4 or len(sizes) < 8:
            raise _BrokenError("a matrix without kind or size")
        (flag,) = struct.unpack_from(f"{self.order}I", flags)
        shape = struct.unpack(f"{self.order}{len(sizes) // 4}i", sizes)
        if min(shape) < 0:
            raise _BrokenError(f"a matrix of {' x '.join(map(str, shape))}")
        return label, self.values(flag, shape, parts, depth)

    def values(
        self, flag: int, shape: tuple[int, ...], parts: Iterator[tuple[int, memoryview]], depth: int
    ) -> NDArray[Any]:
        kind, count = flag & 0xFF, math.prod(shape)
        if kind == _CELL:
            return self.cells(shape, count, parts, depth)
        stored, content = next(parts, (0, memoryview(b"")))
        if kind == _CHARACTERS:
            return _rows(_text(stored, content, self.order), shape)
        if kind not in _NUMBERS:
            raise _BrokenError(_KINDS.get(kind, f"a value of kind {kind}"))
        if stored not in _STORED or len(content) != count * np.dtype(_STORED[stored]).itemsize:
            raise _BrokenError(f"{' x '.join(map(str, shape))} numbers in {len(content)} bytes")
        if flag & _COMPLEX:  # of no use to anybody here: the kind is told, not the values
            return np.broadcast_to(np.complex128(0), shape)
        numbers = np.frombuffer(content, np.dtype(_STORED[stored]).newbyteorder(self.order))
        return numbers.astype(numbers.dtype.newbyteorder("=")).reshape(shape, order="F")

    def cells(
        self, shape: tuple[int, ...], count: int, parts: Iterator[tuple[int, memoryview]], depth: int
    ) -> NDArray[Any]:
        inner = [self.matrix(content, depth + 1)[1] for kind, content in parts if kind == _MATRIX]
        if len(inner) != count:
            raise _BrokenError(f"{len(inner)} of {count} cells")
        cells = np.empty(count, dtype=object)
        for i, value in enumerate(inner):
            cells[i] = value
        return cells.reshape(shape, order="F")


def _inflated(content: memoryview) -> bytes:
    limit = max(MAX_SWELLING * len(content), _ALWAYS_ALLOWED)
    inflating = zlib.decompressobj()
    try:
        whole = inflating.decompress(content, limit)
    except zlib.error as error:
        raise _BrokenError(str(error)) from error
    if not inflating.eof:
        raise _BrokenError(f"a variable that is cut short, or swells more than {MAX_SWELLING}-fold")
    return whole


def _text(stored: int, content: memoryview, order: str) -> str:
    encoding = _TEXT.get(stored, "")
    if encoding.endswith("-"):
        encoding += "le" if order == "<" else "be"
    try:
        return bytes(content).decode(encoding)
    except (LookupError, UnicodeDecodeError) as error:
        raise _BrokenError(f"characters stored as kind {stored} that are none") from error


def _rows(text: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """One ``str`` for each row; MATLAB keeps the columns one after the other."""
    if len(shape) != 2 or len(text) != math.prod(shape):
        raise _BrokenError(f"{len(text)} characters for {' x '.join(map(str, shape))}")
    rows = [text[row :: shape[0]] for row in range(shape[0])] if text else []
    return np.array(rows, dtype=str)
