"""What a shell completes: names and values that exist, and fast."""

import subprocess
import sys

import pytest

from ohem.cli.app import app
from ohem.cli.completion import TARGETS
from ohem.models.spec import RPN_IN_USE
from ohem.recipes.fields import all_fields, known_fields
from ohem.recipes.files import built_in_recipes
from ohem.recipes.recipe import Recipe, load_recipe
from ohem.studies.mini import mini_study
from ohem.studies.runner import targets


def completed(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is offered for the last of the words."""
    monkeypatch.setenv("_OHEM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        app(prog_name="ohem")
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ohem train fast", ["fasterrcnn_lite0"]),
        ("ohem recipes vgg", ["vgg16", "vgg_cnn_m_1024"]),
        ("ohem reproduce claims --recipe mini_", ["mini_demo"]),
        ("ohem train lite0 optimizer.l", ["optimizer.lr="]),
        ("ohem train lite0 precision=", ["precision=float32", "precision=bfloat16", "precision=float16"]),
        ("ohem train lite0 iterations=5 sampler=ha", ["sampler=hard"]),
        ("ohem train lite0 iterations = 5 sampler = ha", ["hard"]),  # as bash gives it
        ("ohem train lite0 iterations = 5 data.flip =", ["true", "false"]),
        ("ohem train lite0 ranking.kind=lo", ["ranking.kind=low_rank"]),
        ("ohem train lite0 detector.backbone.fr", ["detector.backbone.freeze="]),
        ("ohem evaluate runs/lite0 detection.jo", ["detection.join="]),
        ("ohem evaluate runs/faster rpn.", [f"rpn.{name}=" for name in RPN_IN_USE]),
        ("ohem evaluate runs/lite0 optimizer.l", []),
        ("ohem submit runs/lite0 voc12 detection.join=po", ["detection.join=pool"]),
        ("ohem data voc0", ["voc07"]),
        ("ohem reproduce fig", ["figure3"]),
    ],
)
def test_values_are_completed(
    words: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert completed(words, capsys, monkeypatch) == expected


def test_completing_loads_no_torch() -> None:
    script = """
import os, sys
os.environ |= {"_OHEM_COMPLETE": "complete_bash", "COMP_WORDS": "ohem train lite0 sampler=ha", "COMP_CWORD": "3"}
sys.argv = ["ohem"]
from ohem.cli import main
try: main()
except SystemExit: pass
print("torch" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["sampler=hard", "False"]


def test_the_fields_that_are_completed_are_those_of_recipes() -> None:
    assert known_fields() == all_fields(), "python -m ohem.recipes.fields writes them anew"
    assert set(targets(mini_study({}))) == set(TARGETS)
    parts = {name.partition(".")[0] for name in known_fields()}
    assert parts == set(Recipe.model_fields)


def test_a_value_that_is_completed_is_one_that_is_taken() -> None:
    def value(recipe: Recipe, field: str) -> object:
        found = recipe.model_dump(mode="json")
        for part in field.split("."):
            found = found[part]
        return found

    taken = 0
    for field, values in known_fields().items():
        if field.startswith(("detector", "rpn_sampler", "sampler.", "loss", "ranking", "mining")):
            continue  # they depend on others
        for each in values:
            found = value(load_recipe("lite0", [f"{field}={each}"]), field)
            assert str(found["kind"] if isinstance(found, dict) else found).lower() == each
            taken += 1
    assert taken > 20
    assert set(known_fields()["detector"]) > {name for name in built_in_recipes() if name.startswith("fasterrcnn")}
