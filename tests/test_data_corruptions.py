"""Every broken data set is refused, with all its faults, one line each, and nothing in its folder is touched."""

import hashlib
import random
from pathlib import Path

import pytest

from corruptions import CORRUPTIONS, Corruption, make_coco, make_voc, make_yolo
from ohem.data.check import check_dataset
from ohem.data.sources import load_dataset
from ohem.errors import DataError, OhemError

MAKE = {"voc": make_voc, "coco": make_coco, "yolo": make_yolo}


def contents(folder: Path) -> dict[str, str]:
    """What is in every file of the folder, and when it was last written."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("case", CORRUPTIONS, ids=lambda case: f"{case.format}: {case.name}")
def test_broken_data_is_refused(case: Corruption, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    MAKE[case.format](folder)
    case.corrupt(folder)
    before = contents(folder)

    if case.found_by == "reading":
        with pytest.raises(DataError) as caught:
            load_dataset([str(folder)])
        faults = caught.value.faults
        assert str(caught.value).count("\n") == len(faults) - 1
    else:
        dataset = load_dataset([str(folder)])
        assert (len(check_dataset(dataset, decode=False)) > 0) == (case.found_by == "headers")
        faults = tuple(check_dataset(dataset))

    lines = [str(fault) for fault in faults]
    assert len(lines) == case.faults
    assert all(line.startswith(str(folder)) and "; allowed: " in line and "\n" not in line for line in lines)
    assert any(fault.file.name == case.file and case.expect in line for fault, line in zip(faults, lines, strict=True))
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["voc", "coco", "yolo"])
def test_the_unbroken_data_has_no_fault(name: str, tmp_path: Path) -> None:
    MAKE[name](tmp_path / "data")
    assert check_dataset(load_dataset([str(tmp_path / "data")])) == []


@pytest.mark.parametrize("name", ["voc", "coco", "yolo"])
def test_random_damage_never_ends_in_another_exception(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    MAKE[name](folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    chance = random.Random(0)
    refused = 0
    for _ in range(100):
        path = chance.choice(files)
        whole = path.read_bytes()
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.randint(0, 2 * len(damaged))])
        try:
            refused += bool(check_dataset(load_dataset([str(folder)]), workers=1))
        except OhemError:
            refused += 1
        path.write_bytes(whole)
    assert refused > 30
