"""The documentation's code is right: Python runs, commands and settings are known to the program, recipes load."""

import importlib
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch.distributed.run import get_args_parser
from torchvision.models import detection

import ohem
from corruptions import make_yolo
from doc_blocks import PAGES, ROOT, Block, Words, blocks, inline_code, shell_lines
from ohem.cli.app import app
from ohem.data.published import find_published
from ohem.errors import OhemError
from ohem.models.spec import AnyDetectorSpec
from ohem.recipes.files import built_in_recipes
from ohem.recipes.recipe import load_recipe, override_spec
from ohem.studies.mini import mini_study
from ohem.studies.runner import needs_of
from test_cli import SMALL

OHEM = typer.main.get_command(app)
WRONG_CALL = typer.BadParameter.__mro__[1]  # UsageError, of click or of typer's own copy of it
README = ROOT / "README.md"
OWN_SAMPLER = ROOT / "docs" / "own_sampler.md"
TORCHVISION_PAGE = ROOT / "docs" / "torchvision.md"  # its blocks run in test_torchvision_script.py


def small_recipe(name: str, overrides: Any = ()) -> ohem.Recipe:
    return load_recipe(name, [*overrides, *SMALL, "iterations=2"])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages speak of: MY_DATA, photos, and the run runs/lite0."""
    folder = tmp_path_factory.mktemp("workspace")
    make_yolo(folder / "MY_DATA")
    with (folder / "MY_DATA" / "data.yaml").open("a") as file:
        file.write("test: images/train\n")
    shutil.copytree(folder / "MY_DATA" / "images" / "train", folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        patch.setattr(ohem, "load_recipe", small_recipe)
        ohem.train(small_recipe("lite0"), ohem.Sources(train=("MY_DATA@train",)), name="lite0", workers=0)
        yield folder


def names_of_a_reader() -> dict[str, Any]:
    """What a block may take for granted."""
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [50, 50, 60, 60]])
    return {"ohem": ohem, "model": model, "boxes": boxes, "losses": torch.tensor([1.0, 2.0, 0.5])}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page not in (README, TORCHVISION_PAGE, OWN_SAMPLER) and "```python" in page.read_text()],
    ids=lambda page: page.name,
)
def test_python_blocks_run_one_after_the_other(page: Path, workspace: Path) -> None:
    """Recipes are those of the page, made small, and two steps long."""
    names = names_of_a_reader()
    for block in blocks("python"):
        if block.page == page:
            exec(compile(block.text, block.place, "exec"), names)


def test_the_readmes_blocks_run_and_do_what_they_say(workspace: Path) -> None:
    names = names_of_a_reader()
    for block in blocks("python"):
        if block.page == README:
            exec(compile(block.text, block.place, "exec"), names)
    assert names["recipe"].sampler == ohem.HardSampler()
    assert (names["run"] / "report.html").read_text().rstrip().endswith("</html>")
    assert len(names["found"].detections) == len(list((workspace / "photos").iterdir())) == 3
    assert names["hardest"].tolist() == [1, 2]
    assert hasattr(names["model"].roi_heads, "mining")


def test_the_sampler_of_the_page_has_15_lines_and_trains_in_both_kinds_of_detectors(workspace: Path) -> None:
    """Whatever it chose has left a gradient."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    first, *others = [block.text for block in blocks("python") if block.page == OWN_SAMPLER]
    assert len([line for line in first.partition("class ")[2].splitlines() if line.strip()]) <= 15
    for text in (first, *others):
        exec(text, names)
    assert names["model"].roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
    assert names["detector"].head.cls_score.weight.grad.abs().sum() > 0


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command of words behind ``ohem``, and its values; nothing runs, nor do options that act when they are read."""
    assert isinstance(OHEM, typer.core.TyperGroup)
    with typer.Context(OHEM, info_name="ohem") as above:
        name, command, rest = OHEM.resolve_command(above, [*words])
        assert command is not None
        return str(name), command.make_context(name, rest, parent=above).params


def check_ohem(words: list[str], tmp_path: Path) -> None:
    """Raise for a command, option, choice, recipe, field or name that the program does not know."""
    if words[0].startswith("-"):
        assert words[0] in [option for known in OHEM.params for option in known.opts] + ["--help"]
        return
    name, values = parsed([word for word in words if word != "--help"])
    overrides = [one for one in values.get("overrides") or [] if "..." not in one]
    if name == "train" and values["recipe"] not in (None, "RECIPE"):
        load_recipe(built_in_or_mine(values["recipe"], tmp_path), overrides)
    elif name == "recipes" and values["name"] not in (None, "paper/..."):
        load_recipe(values["name"])
    elif name in ("evaluate", "submit") and overrides:
        override_spec(a_detector(), overrides)
    elif name == "data" and values["name"] not in (None, "NAME"):
        find_published(values["name"])
    elif name == "reproduce" and values["target"] != "TARGET":
        needs_of(mini_study({}), values["target"])


def built_in_or_mine(recipe: str, tmp_path: Path) -> str:
    if recipe != "mine.yaml":
        return recipe
    (tmp_path / recipe).write_text("base: lite0\n")
    return str(tmp_path / recipe)


def a_detector() -> AnyDetectorSpec:
    return load_recipe("lite0").detector


def ohem_words(words: list[str]) -> list[str] | None:
    """What stands behind ``ohem`` or ``torchrun ... -m ohem``; None of another command."""
    if words[0] == "torchrun" and "ohem" in words:
        return words[words.index("ohem") + 1 :]
    return words[1:] if words[0] == "ohem" else None


COMMANDS = [(line.place, words) for line in shell_lines() if (words := ohem_words(line.words))]
IN_SENTENCES = [(line.place, words) for line in inline_code() if line.words and (words := ohem_words(line.words))]
PLACEHOLDERS = {"COMMAND"}
UNFINISHED = ["train", "lite0", "sampl"]  # what completion is shown with
MISTYPED = [["sampler=hardest"], ["schedule.kind=cosin"]]
"""What the command line's page shows the answers to, and so must be refused."""


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_commands_in_blocks_are_known_with_all_that_they_are_given(
    place: str, words: list[str], tmp_path: Path
) -> None:
    check_ohem(words, tmp_path)


@pytest.mark.parametrize(("place", "words"), IN_SENTENCES, ids=[place for place, _ in IN_SENTENCES])
def test_commands_in_sentences_are_known(place: str, words: list[str], tmp_path: Path) -> None:
    """They may leave out what the sentence does not speak of."""
    if words[0] in PLACEHOLDERS or words == UNFINISHED:
        return
    try:
        check_ohem(words, tmp_path)
    except WRONG_CALL as error:
        if type(error).__name__ != "MissingParameter" and "requires an argument" not in str(error):
            raise


@pytest.mark.parametrize(
    "wrong",
    [
        "trian lite0 --data x",
        "train lite0 --dta x",
        "train lite9 --data x",
        "train lite0 sampler=hardest --data x",
        "train lite0 sampler.nms_io=0.5 --data x",
        "evaluate runs/lite0 detection.join=mean --data x",
        "propose x --mode slow",
        "data voc7 voc",
        "report",
    ],
)
def test_a_wrong_command_would_be_found(wrong: str, tmp_path: Path) -> None:
    with pytest.raises((WRONG_CALL, OhemError)):
        check_ohem(wrong.split(), tmp_path)


SETTINGS = [
    line for line in inline_code() if line.words and all(re.fullmatch(r"[a-z_.]+=.+", one) for one in line.words)
]
SETTINGS = [line for line in SETTINGS if line.words not in (["strict=True"], *MISTYPED)]  # the first is torch's
CONTEXTS = [
    ([], ""),
    (["detector=fasterrcnn_lite0"], ""),
    (["sampler=random"], ""),
    (["sampler=random"], "sampler."),
    (["detector=fasterrcnn_resnet50_fpn"], ""),
    (["detector=fasterrcnn_resnet50_fpn"], "detector."),
    ([], "detector."),  # of a trained one: detection.refine=0.05
]
"""What a sentence may be about, and so leave out."""


@pytest.mark.parametrize("setting", SETTINGS, ids=[line.place for line in SETTINGS])
def test_settings_in_sentences_are_fields_of_a_recipe(setting: Words) -> None:
    values = [re.sub(r"=FILE$", "=file", re.sub(r"=N$", "=1", one)) for one in setting.words]
    refused = []
    for before, prefix in CONTEXTS:
        try:
            load_recipe("lite0", [*before, *(prefix + value for value in values)])
            return
        except OhemError as error:
            refused.append(str(error))
    pytest.fail("\n".join(refused))


@pytest.mark.parametrize("setting", MISTYPED)
def test_settings_shown_as_mistyped_are_refused(setting: list[str]) -> None:
    with pytest.raises(OhemError, match="did you mean"):
        load_recipe("lite0", setting)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_recipes_on_the_pages_load(block: Block, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(block.text)
    load_recipe(str(tmp_path / "mine.yaml"))


def test_torchrun_takes_no_option_of_ours_for_its_own() -> None:
    """It reads the whole line: ``--run`` is the beginning of two of its options, and refused."""
    lines = [words[1:] for _, words in shell_lines() if words[0] == "torchrun"]
    assert len(lines) == 3
    for words in lines:
        assert get_args_parser().parse_args(words).training_script == "ohem"


def test_extras_that_are_installed_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [words[-1] for _, words in [*shell_lines(), *inline_code()] if words[:2] == ["pip", "install"]]
    assert len(wanted) > 3
    assert {name for one in wanted for name in re.findall(r"\[(\w+)\]", one)} <= extras.keys()


def test_make_targets_and_options_of_scripts_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    seen = 0
    for place, words in [*shell_lines(), *inline_code()]:
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets, place
            seen += 1
        if words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py"):
            source = (ROOT / words[1]).read_text()
            assert [
                one for one in words[2:] if one.startswith("--") and f'"{one.split("=")[0]}"' not in source
            ] == [], place
            seen += 1
    assert seen > 30


def test_names_of_the_package_in_sentences_exist() -> None:
    for place, words in inline_code():
        if words and (match := re.fullmatch(r"(ohem(?:\.\w+)+)(\(.*)?", words[0])):
            assert resolves(match[1]), f"{place}: {match[1]}"


def resolves(dotted: str) -> bool:
    value: Any = ohem
    so_far = "ohem"
    for name in dotted.split(".")[1:]:
        so_far += f".{name}"
        try:
            value = getattr(value, name)
        except AttributeError:
            try:
                value = importlib.import_module(so_far)
            except ModuleNotFoundError:
                return name in getattr(value, "__annotations__", {})
    return True


def test_every_built_in_recipe_of_the_first_rank_is_in_the_training_page() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    assert [name for name in built_in_recipes() if "/" not in name and f"`{name}`" not in text] == []


def test_blocks_speak_a_language_that_is_tested() -> None:
    assert {
        re.sub(r" .*", "", each)
        for page in PAGES
        for each in re.findall(r"^ *```(\w+)$", page.read_text(), re.MULTILINE)
    } <= {
        "bash",
        "console",
        "python",
        "yaml",
        "diff",
        "text",
    }
