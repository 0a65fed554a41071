"""Every broken or malicious file is refused in one line with exit code 2, in little memory, and nothing else happens."""

import faulthandler
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corruptions import make_voc
from hostile_files import HOSTILE, Hostile
from test_cli import SMALL, ohem

MEMORY = 400 * 2**20
"""Bytes that a command may take for a bad file, beyond what the process has."""

SECONDS = 30
"""After which a command counts as hanging."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a run that was interrupted, and one that is finished and evaluated."""
    folder = tmp_path_factory.mktemp("hostile")
    make_voc(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OHEM_CACHE", f"{folder}-cache")
        settings = [*SMALL, "detector.backbone.weights=none", "iterations=2", "checkpoint_every=1", "--workers", 0]
        assert ohem("train", "lite0", *settings, "--data", "data@trainval", "--run", "done") == 0
        assert ohem("evaluate", "done", "--data", "data@trainval", "--workers", 0) == 0
    shutil.copytree(folder / "done", folder / "run", ignore=shutil.ignore_patterns("weights*", "evaluation"))
    return folder


@pytest.fixture
def place(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to break, as the current folder."""
    shutil.copytree(bench, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OHEM_CACHE", f"{tmp_path}-cache")
    return tmp_path


@pytest.fixture
def watched() -> Iterator[None]:
    """End the process when it hangs, also in code that is not Python's."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def files_in(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file's size and time of change."""
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def peak_memory() -> int:
    """The most resident bytes since the last call; of the process's whole life where Linux cannot tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(peak.split()[1]) * 1024


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.name)
def test_a_bad_file_is_refused(case: Hostile, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.make(place)
    before = files_in(place)
    peak_memory()
    start = peak_memory()
    assert ohem(*case.command) == 2
    assert peak_memory() - start < MEMORY
    complaint = capsys.readouterr().err
    assert "Traceback" not in complaint
    assert case.expect in complaint
    assert all(len(line) < 2000 and line.isprintable() for line in complaint.splitlines())
    assert files_in(place) == before  # nothing written over, nothing executed, no new file


def test_the_whole_files_are_taken(place: Path) -> None:
    """Else the cases above would be refused for another reason."""
    assert ohem("train", "--resume", "run", "--workers", 0) == 0
