"""What an extra adds, and the one line that names it when it is missing."""

import sys
from pathlib import Path

import pytest

from ohem.comparison import draw_curves
from ohem.errors import OhemError
from ohem.training.tensorboard import tensorboard_observer


def test_tensorboard_gets_every_number_of_the_log(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    observe = tensorboard_observer(tmp_path)
    observe({"kind": "progress", "task": "training", "done": 1, "total": 2})
    observe(
        {
            "kind": "train",
            "iteration": 20,
            "loss_cls": 0.5,
            "loss_all_rois": None,
            "skipped": 3,
            "seconds": {"data": 0.25},
        }
    )
    observe({"kind": "validation", "iteration": 20, "voc07": 0.75})
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    values = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert values == {
        "train/loss_cls": [(20, 0.5)],
        "train/skipped": [(20, 3.0)],
        "train/seconds/data": [(20, 0.25)],
        "validation/voc07": [(20, 0.75)],
    }


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OhemError, match=r"pip install 'ohem\[tensorboard\]'"):
        tensorboard_observer(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OhemError, match=r"pip install 'ohem\[demo\]'"):
        draw_curves([], tmp_path / "curves.png")
