"""docs/recipes.md is what the recipe models and files say now; the samplers' page has the same options and defaults."""

import importlib
import re
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from ohem.recipes.files import built_in_recipes
from ohem.recipes.recipe import LOSSES, SAMPLERS, Recipe, dump_recipe, load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("recipe_page")


def rows(text: str, title: str) -> dict[str, list[str]]:
    """The cells of each row of the first table under a heading, by the name in the first."""
    section = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, title
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|$", section[1], re.MULTILINE)
    return {name: [cell.strip() for cell in re.split(r"(?<!\\)\|", rest)] for name, rest in lines}


def test_the_page_is_up_to_date(writer: ModuleType) -> None:
    assert writer.PAGE.read_text() == writer.page(), "run: python tools/recipe_page.py"


def test_it_names_every_recipe_and_every_field_that_a_recipe_has(writer: ModuleType) -> None:
    text = writer.page()
    for name in built_in_recipes():
        assert f"### {name}\n" in text or f"| `{name}` |" in text
    whole = yaml.safe_load(dump_recipe(load_recipe("fasterrcnn_lite0")))
    assert list(rows(text, "Fields")) == list(whole)
    assert list(rows(text, "detector.rpn")) == list(whole["detector"]["rpn"])
    theirs = yaml.safe_load(dump_recipe(load_recipe("lite0", ["detector=fasterrcnn_resnet50_fpn"])))
    assert list(rows(text, "detector of torchvision")) == list(theirs["detector"])
    assert list(rows(text, "sampler: hard")) == [field.name for field in fields(SAMPLERS.classes["hard"])]


def test_a_row_by_hand_of_each_sort(writer: ModuleType) -> None:
    text = writer.page()
    recipe, head = rows(text, "Fields"), rows(text, "detector.head")
    assert recipe["iterations"][:2] == ["whole number, 1 or more", "`80000`"]
    assert recipe["ema"] == [
        "number, above 0, below 1, or `null`",
        "`null`",
        "decay of an exponential moving average of the weights, such as 0.9998, which is then what is validated and saved;"
        " `null`: the weights themselves. See `ohem.training.averaging.weight_average`.",
    ]
    assert recipe["optimizer"] == ["[optimizer](#optimizer)", "as there", "see [optimizer](#optimizer)."]
    assert recipe["rpn_sampler"][1] == "`null`"
    assert head["pool"][:2] == ["`max`, `align`", "`max`"]
    assert head["fc"][:2] == ["list of 1 or more: whole numbers, 1 or more", "`[4096, 4096]`"]
    assert rows(text, "loss: focal")["alpha"][:2] == ["number, 0 to 1, or `null`", "`0.25`"]
    assert rows(text, "detector of torchvision")["image"][1] == "`{longest: 1333, shortest: 800}`"


def test_the_written_bounds_are_those_that_recipes_keep(writer: ModuleType) -> None:
    """Beyond the page's words for a share, a recipe is refused; at their ends it is not."""
    assert rows(writer.page(), "data")["fraction"][0] == "number, above 0, to 1"
    assert Recipe.model_validate({"data": {"fraction": 1}}).data.fraction == 1
    for refused in (0, 1.01):
        with pytest.raises(ValueError, match="fraction"):
            Recipe.model_validate({"data": {"fraction": refused}})


@pytest.mark.parametrize("kind", SAMPLERS.classes)
def test_the_samplers_page_has_their_options_and_defaults(kind: str) -> None:
    found = rows((ROOT / "docs" / "samplers.md").read_text(), kind)
    options = {field.name: field.default for field in fields(SAMPLERS.classes[kind])}  # type: ignore[arg-type]
    assert MISSING not in options.values()
    assert {name: yaml.safe_load(cells[0]) for name, cells in found.items()} == options


def test_every_loss_is_explained_on_the_samplers_page() -> None:
    text = (ROOT / "docs" / "samplers.md").read_text()
    assert [kind for kind in LOSSES.classes if f"loss={kind}" not in text] == []
