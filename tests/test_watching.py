"""A run watched from another process: before its log, in its midst, killed, resumed, finished; and left as it was."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ohem.errors import OhemError
from ohem.watching import Watcher, sparkline
from shapes import make_shapes
from test_cli import SMALL, contents, ohem


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 iterations: four windows of its log and a validation."""
    folder = tmp_path_factory.mktemp("watched")
    data = make_shapes(folder / "data", train=4, test=2)
    settings = [*SMALL, "iterations=8", "log_every=2", "--workers", 0, "--run", folder / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        assert ohem("train", "lite0", *settings, "--data", f"{data}@train", "--val", f"{data}@test") == 0
    return folder / "run"


@pytest.fixture
def training(run: Path, tmp_path: Path) -> Path:
    """The same run as it was before its first record."""
    shutil.copytree(run, tmp_path / "run")
    for name in ("log.jsonl", "weights.safetensors", "checkpoints/last.pt"):
        (tmp_path / "run" / name).unlink()
    os.utime(tmp_path / "run/run.json")
    return tmp_path / "run"


def test_a_finished_run_is_told_whole_and_left_as_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    capsys.readouterr()
    assert ohem("watch", run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    windows = [record for record in log if record["kind"] == "train"]
    assert (found["state"], found["iteration"], found["iterations"], found["seconds_left"]) == ("finished", 8, 8, 0)
    assert found["iterations_logged"] == [2, 4, 6, 8]
    assert found["loss_selected"] == [record["loss_selected_rois"] for record in windows]
    assert found["lr"] == windows[-1]["lr"]
    assert found["validation"] == [8, "voc07", next(r["voc07"] for r in log if r["kind"] == "validation")]
    assert ohem("watch", run) == 0  # ends: no terminal, and nothing to wait for
    told = capsys.readouterr().out
    assert "8 of 8" in told
    assert "\x1b" not in told
    assert contents(run) == before


def test_a_training_is_followed_record_by_record(run: Path, training: Path) -> None:
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    watcher, log = Watcher(training), training / "log.jsonl"
    assert (watcher.look().state, watcher.look().seconds_left) == ("waiting", None)
    log.write_bytes(lines[0] + lines[1][:40])  # the second record half-written
    found = watcher.look()
    assert (found.state, found.iterations_logged) == ("running", (2,))
    assert found.seconds_per_step is not None
    assert found.seconds_left == pytest.approx(6 * found.seconds_per_step)
    with log.open("ab") as file:
        file.write(lines[1][40:])
    assert watcher.look().iterations_logged == (2, 4)
    other = training / "other"
    other.write_bytes(lines[0])
    other.replace(log)  # as a resumed run does
    assert watcher.look().iterations_logged == (2,)


def test_a_killed_run_is_said_to_be_silent(run: Path, training: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (training / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes().splitlines(keepends=True)[0])
    for path in (training / "log.jsonl", training / "run.json"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 7200))
    assert ohem("watch", training, "--once") == 0
    assert "nothing written for 2:0" in capsys.readouterr().out
    assert Watcher(training).look().seconds_left is None


def test_before_its_first_record_a_slow_run_is_waited_for(training: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = training / "run.json"
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 7200))
    assert Watcher(training).look().state == "waiting"
    assert ohem("watch", training, "--once") == 0
    assert "nothing logged yet; nothing written for 2:0" in capsys.readouterr().out


def test_a_folder_that_is_deleted_and_pauses_without_end_are_refused(
    training: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ohem("watch", training, "--every", "inf") == 2
    assert "less than or equal to 3600" in capsys.readouterr().err
    watcher = Watcher(training)
    shutil.rmtree(training)
    with pytest.raises(OhemError, match="found nothing of the run any more"):
        watcher.look()


def test_on_a_terminal_it_follows_until_the_run_is_finished(run: Path, training: Path) -> None:
    lines = (run / "log.jsonl").read_bytes().splitlines(keepends=True)
    (training / "log.jsonl").write_bytes(lines[0])
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ohem", "watch", str(training), "--every", "0.1"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = _shown_until(ours, b"2 of 8")
        (training / "log.jsonl").write_bytes(b"".join(lines))
        shown += _shown_until(ours, b"8 of 8")
        shutil.copy(run / "weights.safetensors", training)
        shown += _shown_until(ours, b"finished")
        assert process.wait(timeout=60) == 0
    os.close(ours)
    assert b"running" in shown


def _shown_until(terminal: int, text: bytes) -> bytes:
    """What a terminal shows until the text is there; the test fails when the program ends before."""
    shown = b""
    while text not in shown:
        shown += os.read(terminal, 2**16)
    return shown


def test_what_is_no_run_or_no_log_is_refused_in_one_line(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ohem("watch", tmp_path / "nowhere") == 2
    assert "found no run.json and recipe.yaml" in capsys.readouterr().err
    (training / "log.jsonl").write_text("no record\n")
    with pytest.raises(OhemError, match=r"log\.jsonl: found 'no record'"):
        Watcher(training).look()
    (training / "log.jsonl").write_text('{"kind": "train", "iteration": 2, "seconds": 3}\n')
    with pytest.raises(OhemError, match=r"log\.jsonl: found '.*; allowed: a JSON record with"):
        Watcher(training).look()
    (training / "log.jsonl").write_text('{"kind": "train", "iteration": 2}\n')
    found = Watcher(training).look()
    assert (found.iteration, found.seconds_per_step, found.lr) == (2, None, None)


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert sparkline([0.0, None, 7.0, 3.0]) == "▁█▄"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([]) == ""
    assert sparkline([0.0, 0.0, 1.0, 1.0], width=2) == "▁█"
