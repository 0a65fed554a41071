"""Weights given away say what they are."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import ohem
from ohem.cli import main
from ohem.errors import OhemError
from ohem.models.weights import build_detector, save_detector
from ohem.recipes.recipe import Recipe
from ohem.training.run import Run, Sources
from shapes import make_shapes, small_faster_recipe, small_recipe

CLASSES = ("circle", "square", "triangle")


def a_run(folder: Path, recipe: Recipe) -> Run:
    dataset = ohem.load_dataset([f"{make_shapes(folder / 'secret' / 'shapes', train=3, test=1)}@train"])
    run = Run.create(folder / "run", recipe, Sources(("secret/shapes@train",)), dataset, "0123456789abcdef" * 4)
    save_detector(run.weights_file, build_detector(recipe.detector, 3), recipe.detector, CLASSES)
    return run


def test_the_card_tells_what_was_trained_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path, small_recipe("seed=7", "init_from=secret/other.safetensors"))
    run.append({"kind": "train", "iteration": 20})
    card = ohem.export_weights(run.folder, tmp_path / "given")
    text = card.read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("ohem", "object-detection")
    for fact in ("# given", "circle, square, triangle", "3 images", "0123456789abcdef", "| Seed | 7 |", "20 of "):
        assert fact in text
    assert "without a validation split" in text
    assert "secret" not in text
    assert (tmp_path / "given" / "weights.safetensors").read_bytes() == run.weights_file.read_bytes()
    monkeypatch.chdir(tmp_path / "given")
    names: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    assert names["classes"] == CLASSES


def test_the_best_weights_come_with_the_accuracy_that_chose_them(tmp_path: Path) -> None:
    run = a_run(tmp_path, small_faster_recipe())
    run.best_file.write_bytes(run.weights_file.read_bytes())
    for iteration, value in ((10, 0.25), (20, 0.5), (30, 0.375)):
        run.append({"kind": "validation", "iteration": iteration, run.recipe().evaluation.metric: value})
    text = ohem.export_weights(run.folder, tmp_path / "given").read_text()
    assert "0.5000 at iteration 20, the best of 3 looks" in text
    assert "`best.safetensors` of the run, the best on its validation split" in text
    assert "FasterRCNN" in text
    last = ohem.export_weights(run.folder, tmp_path / "last", weights="last").read_text()
    assert "0.3750 at iteration 30." in last  # of the weights that are given, not of the best
    assert "the best" not in last


def test_nothing_is_overwritten_and_only_a_run_is_described(tmp_path: Path) -> None:
    run = a_run(tmp_path, small_recipe())
    with pytest.raises(OhemError, match="found something there already; allowed: a new or empty folder"):
        ohem.export_weights(run.folder, tmp_path)
    with pytest.raises(OhemError, match=r"run\.json"):
        ohem.export_weights(run.weights_file, tmp_path / "given")
    assert not (tmp_path / "given").exists()


def test_the_command_wants_a_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path, small_recipe())
    for arguments, code in (([], 2), (["--safetensors", str(tmp_path / "given")], 0)):
        monkeypatch.setattr(sys, "argv", ["ohem", "export", str(run.folder), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
    assert (tmp_path / "given" / "README.md").is_file()
    assert "--onnx FILE" in capsys.readouterr().err


def test_what_run_json_does_not_tell_is_not_known_or_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path, small_recipe())
    info = run.info()
    run.info_file.write_text(json.dumps({name: value for name, value in info.items() if name != "machine"}))
    assert "| Machine | not known, torch not known |" in ohem.export_weights(run.folder, tmp_path / "given").read_text()
    run.info_file.write_text(json.dumps({name: value for name, value in info.items() if name != "data"}))
    with pytest.raises(OhemError, match=r"run\.json: data\.fingerprint: found None; allowed: a text"):
        ohem.export_weights(run.folder, tmp_path / "other")
