"""``--json`` and ``--quiet``: what is the answer of a command, and what is talk."""

import inspect
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corruptions import make_voc
from ohem.cli.app import app
from ohem.console import Console
from shapes import make_shapes
from test_cli import SMALL, ohem

TRAIN = ["train", "lite0", *SMALL, "iterations=2", "log_every=1", "--workers", 0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, made the current one, with data and the runs ``hard`` and ``random``, evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    make_shapes(folder / "data", train=6, test=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        for kind in ("hard", "random"):
            where = ["--data", "data@train", "--val", "data@test", "--run", kind]
            assert ohem(*TRAIN, f"sampler={kind}", *where) == 0
            assert ohem("evaluate", kind, "--data", "data@test", "--workers", 0) == 0
        yield folder


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The one JSON document on stdout."""
    capsys.readouterr()
    assert ohem(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def test_every_command_takes_json_and_quiet() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert tuple(inspect.signature(command.callback).parameters)[-2:] == ("as_json", "quiet")


def test_answers_hold_what_the_files_hold(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated = answer(capsys, "evaluate", "hard", "--data", "data@test", "--out", "judged", "--workers", 0)
    assert evaluated == {"folder": "judged", **read("judged/metrics.json")}
    detected = answer(capsys, "detect", "hard", "data/JPEGImages", "--out", "seen", "--threshold", 0, "--workers", 0)
    assert detected == {"folder": "seen", **read("seen/detections.json")}
    assert sum(len(image["objects"]) for image in detected["images"]) > 0


def test_answers_name_what_was_made(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--data", "data@train", "--val", "data@test", "--run", "again"]
    trained = answer(capsys, *TRAIN, *where)
    assert (trained["folder"], trained["finished"]) == ("again", True)
    assert trained["validation"] == json.loads(Path("again/log.jsonl").read_text().splitlines()[-1])
    assert Path(answer(capsys, "report", "hard", "random", "--workers", 0)["page"]).is_file()
    inspected = answer(capsys, "inspect", "hard", "--data", "data@train", "--shown", 5, "--workers", 0)
    assert inspected["shown"] == sum(inspected["kinds"].values()) == 5
    assert (Path(inspected["folder"]) / "suspects.csv").is_file()
    exported = answer(capsys, "export", "hard", "--onnx", "hard.onnx", "--data", "data@test", "--check", 2)
    assert (exported["onnx"], exported["check"]["images"], exported["card"]) == ("hard.onnx", 2, None)
    assert Path(answer(capsys, "export", "hard", "--safetensors", "released")["card"]).is_file()
    harvested = answer(capsys, "harvest", "hard", "boxes.json", "--data", "data@train", "--workers", 0)
    assert harvested == {"file": "boxes.json", "images": 6, "proposals": len(read("boxes.json"))}


def test_answers_count_what_was_found(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked = answer(capsys, "check", "data@train")
    assert (checked["images"], checked["boxes"], checked["notes"]) == (6, 12, [])
    recall = answer(capsys, "propose", "data@test", "--workers", 1)
    assert recall["objects"][0] == 6
    assert recall["recall"][recall["areas"].index("large")][0] == [None] * len(recall["counts"])  # no large objects
    assert Path(recall["file"]).is_file()
    compared = answer(capsys, "compare", "hard", "random")
    for arm, kind in zip(compared["arms"], ("hard", "random"), strict=True):
        assert f"sampler.kind={kind}" in arm["label"]
        assert arm["values"]["0"]["mAP, VOC07"] == 100 * read(f"{kind}/evaluation/metrics.json")["voc07"]["mean_ap"]
    assert answer(capsys, "watch", "hard")["state"] == "finished"
    assert "lite0" in answer(capsys, "recipes")
    assert answer(capsys, "recipes", "lite0")["sampler"]["kind"] == "hard"
    assert answer(capsys, "data")[0]["name"] == "voc07"
    left = answer(capsys, "reproduce", "table1", "--plan", "--seeds", 1, "--data", "data@train", "--test", "data@test")
    assert left["jobs"] == len(left["left"]) > left["done"] == 0
    assert answer(capsys, "reproduce", "table1", "--plan", "--out", "elsewhere")["done"] == 0
    assert not Path("elsewhere").exists()


def test_nothing_but_the_answer_is_on_stdout(runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "hard", "--data", "data@test", "--proposals", "boxes.sqlite", "--workers", 0]
    assert ohem("propose", "data@test", "--out", "boxes.sqlite", "--workers", 1) == 0
    assert ohem("propose", "data@test", "--out", "more.sqlite", "--proposals", "boxes.sqlite") == 2
    capfd.readouterr()
    assert ohem(*command, "--json") == 0
    told, talk = capfd.readouterr()
    assert len(told.splitlines()) == 1
    assert "boxes.sqlite: proposals of 3 images" in talk
    assert ohem(*command, "--quiet") == 0
    told, talk = capfd.readouterr()
    assert told.splitlines()[0].startswith("VOC AP at IoU 0.5")
    assert talk == ""
    assert ohem(*command, "--quiet", "--json") == 0
    told, talk = capfd.readouterr()
    assert (len(told.splitlines()), talk) == (1, "")


def test_what_was_left_out_is_told_in_quiet_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_voc(tmp_path / "data")
    for manner in ("-q", "--json"):
        assert ohem("check", tmp_path / "data", "--classes", "cat", "--other-classes", "drop", manner) == 0
        told, talk = capsys.readouterr()
        assert "of classes not in the list" in talk
        assert "no faults" in told or json.loads(told)["notes"]


def test_errors_are_told_as_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for manner in ("-q", "--json"):
        assert ohem("compare", tmp_path / "nowhere", manner) == 2
        told, complaint = capsys.readouterr()
        assert told == ""
        assert len(complaint.splitlines()) == 1


def test_progress_on_a_terminal_is_no_part_of_the_answer(runs: Path) -> None:
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "ohem", "check", "data@train", "--json"]
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, check=True).stdout
    assert json.loads(told)["images"] == 6
    assert b"decoding images" in os.read(screen, 100_000)


def test_documents_are_json_whatever_is_in_them(capsys: pytest.CaptureFixture[str]) -> None:
    Console(as_json=True).answer({"file": Path(os.fsdecode(b"\xff[bold]\n")), "ap": (float("nan"), 0.5)})
    assert json.loads(capsys.readouterr().out) == {"file": "\udcff[bold]\n", "ap": [None, 0.5]}
