"""The demo, in small: both arms, the table and the pictures; and a second call that finds all of it done."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ohem.demo import run_demo
from ohem.errors import OhemError
from ohem.training.run import Run
from ohem.workflow import SILENT


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
