"""The demo, in small: both arms, the table and the pictures; and a second call that finds all of it done."""

import json
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from ohem.demo import _train, run_demo
from ohem.errors import OhemError
from ohem.opening import SILENT
from ohem.training.run import Run


class Listener(type(SILENT)):  # type: ignore[misc]
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_the_demo_trains_both_arms_and_draws_what_they_learned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arms = run_demo(tmp_path / "demo", iterations=4, seed=0, reporter=(listener := Listener()), images=(6, 4))
    told, talk = capfd.readouterr()  # stdout is for the answer, which the command gives
    assert (told, "iteration" in talk) == ("", True)
    assert [text.split()[:3] for text in listener.said if "$" in text] == [["$", "ohem", "train"]] * 2
    assert all(map(str.isprintable, listener.said))  # else the terminal shows escapes
    assert [arm.name for arm in arms] == ["heuristic sampler", "OHEM"]
    table = json.loads((tmp_path / "demo/table.json").read_text())
    assert [tuple(row.values()) for row in table] == [arm.row() for arm in arms]
    for name in ("curves", "precision_recall", "detections", "hardest"):
        with Image.open(tmp_path / f"demo/{name}.png") as picture:
            assert min(picture.size) > 200
    random, hard = (Run(tmp_path / "demo" / kind).recipe() for kind in ("random", "hard"))
    assert random.model_copy(update={"sampler": hard.sampler}) == hard
    assert all(record["loss_all_rois"] is not None for record in arms[1].log)

    weights = (tmp_path / "demo/hard/weights.safetensors").stat()
    again = run_demo(tmp_path / "demo", iterations=4, seed=0, reporter=SILENT, images=(6, 4))
    assert [arm.row() for arm in again] == [arm.row() for arm in arms]
    assert (tmp_path / "demo/hard/weights.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    with pytest.raises(OhemError, match="found a run of 4 iterations, seed 0; allowed: the same"):
        run_demo(tmp_path / "demo", iterations=5, seed=0, reporter=SILENT, images=(6, 4))


def test_ctrl_c_waits_for_the_training_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, saved = tmp_path / "training", tmp_path / "saved"
    training.write_text(f"#!/bin/sh\nsleep 1\nkill -INT $PPID\nsleep 1\ntouch '{saved}'\n")
    training.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(training))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _train(tmp_path / "run", "hard", "data@train", tmp_path / "cache", 4, 0, SILENT, quiet=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert saved.exists()
