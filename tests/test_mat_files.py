"""MATLAB's files: what SciPy writes is read as SciPy reads it, and no bytes end in anything but an array or a fault."""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ohem.errors import DataError
from ohem.proposals.mat_files import read_mat

NUMBERS = st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "i8", "u8"]).flatmap(
    lambda kind: arrays(kind, array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=5))
)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), max_size=9)


def cells(values: list[Any]) -> np.ndarray[Any, Any]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array[None, :]


VALUES = st.recursive(NUMBERS | TEXTS, lambda inner: st.lists(inner, max_size=4).map(cells), max_leaves=8)


def saved(path: Path, compressed: bool = False, **variables: Any) -> Path:
    scipy.io.savemat(path, variables, do_compression=compressed)
    return path


def require_same(a: Any, b: Any) -> None:
    assert a.shape == b.shape
    assert a.dtype.kind == b.dtype.kind
    for one, other in zip(a.flat, b.flat, strict=True):
        if isinstance(one, np.ndarray):
            require_same(one, other)
        else:
            assert one == other or (one != one and other != other)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mat")


@settings(max_examples=60, derandomize=True, deadline=None)
@given(value=VALUES, compressed=st.booleans())
def test_it_reads_what_scipy_reads(folder: Path, value: Any, compressed: bool) -> None:
    path = saved(folder / "a.mat", compressed, wanted=cells([value]), other=np.ones(3))
    found = read_mat(path, ("wanted",))
    assert list(found) == ["wanted"]
    require_same(found["wanted"], scipy.io.loadmat(path)["wanted"])


def test_files_of_the_other_byte_order(folder: Path) -> None:
    """As MATLAB wrote them on a Sun; by hand, since SciPy writes one order only."""
    tag, flags = b"\0\0\0\x0e\0\0\0\x40", b"\0\0\0\6\0\0\0\x08\0\0\0\6\0\0\0\0"
    body = flags + b"\0\0\0\5\0\0\0\x08\0\0\0\2\0\0\0\1" + b"\0\1\0\1w\0\0\0" + b"\0\0\0\x09\0\0\0\x10"
    numbers = np.array([1.5, -2.0], ">f8").tobytes()
    path = folder / "big.mat"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\1\0MI" + tag + body + numbers)
    assert read_mat(path, ("w",))["w"].tolist() == scipy.io.loadmat(path)["w"].tolist() == [[1.5], [-2.0]]


@settings(max_examples=150, derandomize=True, deadline=None)
@given(data=st.data())
def test_no_damage_ends_in_another_exception(folder: Path, data: st.DataObject) -> None:
    stream = io.BytesIO()
    content = {"boxes": cells([np.ones((3, 4)), cells(["a"])]), "images": np.array(["one", "two"])}
    scipy.io.savemat(stream, content, do_compression=data.draw(st.booleans()))
    damaged = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(124, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.mat"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with suppress(DataError):
        read_mat(path, ("boxes", "images"))
