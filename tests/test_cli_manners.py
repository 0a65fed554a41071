"""How the command line speaks: what to do next, names mistyped, exit codes, no colours in pipes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from ohem.cli.app import NEXT, app, next_of_runs
from ohem.cli.completion import TARGETS
from ohem.data.published import find_published
from ohem.recipes.fields import known_fields
from ohem.recipes.recipe import load_recipe
from test_cli import ohem

HOME = Path(__file__).parent.parent


def test_ohem_alone_says_what_to_do_with_the_newest_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert next_of_runs(Path("runs")) == []
    for age, (name, files) in enumerate(
        {
            "begun": [],
            "trained": ["weights.safetensors"],
            "well judged": ["weights.safetensors", "evaluation/metrics.json"],
        }.items()
    ):
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        for file in ("run.json", *files):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).touch()
        os.utime(folder / "run.json", (1000 - age, 1000 - age))
    _, _, *told = next_of_runs(Path("runs"))
    assert [line.split(": ", 1)[1] for line in told] == [
        "ohem watch runs/begun, or if it was stopped: ohem train --resume runs/begun",
        "ohem evaluate runs/trained --data DATA",
        "ohem report 'runs/well judged'",
    ]
    assert len(next_of_runs(Path("runs"), most=1)) == 3


def make_split(folder: Path) -> None:
    """Data sets of three forms, as far as the names of their splits: each has ``train`` alone."""
    (folder / "voc/ImageSets/Main").mkdir(parents=True)
    (folder / "voc/Annotations").mkdir()
    (folder / "voc/JPEGImages").mkdir()
    (folder / "voc/ImageSets/Main/train.txt").write_text("1")
    (folder / "yolo").mkdir()
    (folder / "yolo/data.yaml").write_text("train: images\nnames: [cat]\n")
    (folder / "coco/annotations").mkdir(parents=True)
    (folder / "coco/annotations/instances_train.json").write_text("{}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "--dta", "x"], "--data"),
        (["train", "lite0", "sampler.nms_io=0.5", "--data", "data"], "did you mean nms_iou?"),
        (["train", "lite0", "detector=fasterrcnn_resnet50_fnp", "--data", "data"], "mean fasterrcnn_resnet50_fpn?"),
        (["train", "lite0", "schedule.kind=cosin", "--data", "data"], "found 'cosin' (did you mean cosine?); allowed"),
        (["train", "lite0", "iterations=hard", "--data", "data"], "iterations: found 'hard'; allowed: "),
        (["reproduce", "tabel1"], "did you mean table1?"),
        (["check", "voc@tain"], "found no such split (did you mean train?); allowed: train"),
        (["check", "yolo@tain"], "found no split 'tain' (did you mean train?); allowed"),
        (["check", "coco@tain"], "found no plain choice for tain (did you mean train?); allowed"),
    ],
)
def test_mistyped_names_are_answered_with_the_nearest_and_exit_code_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_split(tmp_path)
    assert ohem(*arguments) == 2
    told, complaint = capsys.readouterr()
    assert expected in complaint
    assert told == ""


@pytest.mark.parametrize(
    ("body", "code", "last_line"),
    [
        ("pass", 0, ""),
        ("raise ValueError('a fault of ours')", 1, "ValueError: a fault of ours"),
        ("raise PermissionError(13, 'Permission denied', 'out')", 2, "out: found Permission denied; allowed after"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_exit_codes_are_those_of_the_documentation(body: str, code: int, last_line: str) -> None:
    script = f"""
import sys
from ohem.cli import main
from ohem.cli.app import app
@app.command()
def odd():
    {body}
sys.argv = ["ohem", "odd"]
main()
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == code
    assert (ended.stderr.splitlines() or [""])[-1].startswith(last_line)


def examples(text: str) -> list[list[str]]:
    """The words of the commands in a help text; where an output goes to is the shell's."""
    found = re.findall(r"\[cyan\]ohem (.*?)\[/cyan\]", text, re.DOTALL)
    return [shlex.split(command.partition(">")[0]) for command in found]


def parsed(words: list[str]) -> dict[str, object]:
    """What the options and arguments of an example are taken for; an error where they are none."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    name, *rest = words
    return group.commands[name].make_context(name, rest).params


def test_every_command_explains_itself_with_examples_that_it_takes() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        shown = examples(command.callback.__doc__ or "")
        assert name in [words[0] for words in shown]
        for words in shown:
            given = parsed(words)
            if words[0] == "train" and given["recipe"]:
                load_recipe(str(given["recipe"]), given["overrides"] or [])  # type: ignore[arg-type]
            if words[0] == "evaluate":
                fields = [override.partition("=")[0] for override in given["overrides"] or []]  # type: ignore[attr-defined]
                assert {f"detector.{field}" for field in fields} <= known_fields().keys()
            if words[0] == "data" and given["name"]:
                find_published(str(given["name"]))
            if words[0] == "reproduce":
                assert given["target"] in TARGETS


def test_what_ohem_alone_proposes_is_taken() -> None:
    proposed = [line for line in re.sub(r"\[/?(bold|cyan)\]", "", NEXT).splitlines() if line.startswith("  ohem")]
    commands = [shlex.split(re.split(r" {2,}", line.strip())[0])[1:] for line in proposed]
    assert [words[0] for words in commands][:3] == ["demo", "data", "check"]
    for words in commands[:-1]:
        parsed(words)
    assert commands[-1] == ["COMMAND", "--help", "explains", "the", "rest."]


def test_nothing_piped_is_coloured() -> None:
    for arguments in ([], ["--help"], ["train", "--help"]):
        told = subprocess.run([sys.executable, "-m", "ohem", *arguments], capture_output=True, check=True).stdout
        assert b"\x1b" not in told
