"""The documentation builds as a site that needs no other, leads everywhere, and its commands and lines are those of the package."""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from ohem.cli.app import app
from ohem.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
READABLE = [*PAGES, ROOT / "README.md", ROOT / "benchmarks" / "README.md"]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#[^)]*)?\)")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.S | re.M)


def shell_lines() -> Iterator[tuple[str, str]]:
    """Each command shown, with its page; of ``a && b`` both."""
    for page in READABLE:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                if line.startswith("$ ") and not line.startswith("$ for "):
                    for part in re.split(r" && ", line[2:]):
                        yield page.name, part


class Fetched(HTMLParser):
    """What a browser gets when it opens the page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag in ("script", "img", "iframe", "source") or (tag == "link" and values.get("rel") != "canonical"):
            self.addresses += [value for name in ("src", "href") if (value := values.get(name))]


def test_the_site_builds_without_a_warning_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    built = list(tmp_path.rglob("*.html"))
    assert len(built) >= len(PAGES)
    for page in built:
        fetched = Fetched()
        fetched.feed(page.read_text())
        assert [address for address in fetched.addresses if re.match(r"(https?:)?//", address)] == []
    assert "<math" in (tmp_path / "samplers" / "index.html").read_text()
    assert 'class="arithmatex"' not in (tmp_path / "samplers" / "index.html").read_text()


@pytest.mark.parametrize("page", READABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if target and "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_can_be_reached_from_the_first() -> None:
    reached, left = set(), [ROOT / "docs" / "index.md"]
    while left:
        page = left.pop()
        if page not in reached and page.suffix == ".md" and page.parent.name == "docs":
            reached.add(page)
            left += [(page.parent / target).resolve() for target in LINK.findall(page.read_text()) if target]
    assert sorted(reached) == PAGES


@pytest.mark.parametrize(("page", "line"), list(shell_lines()))
def test_commands_of_the_pages_are_commands_of_the_package(page: str, line: str, tmp_path: Path) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "torchrun":
        words = ["ohem", *words[words.index("ohem") + 1 :]]
    if "..." in words:
        words = [word for word in words if word != "..."] + ["MY_DATA"]
    match words:
        case ["ohem", *rest]:
            parse(rest[: rest.index(">")] if ">" in rest else rest, tmp_path)
        case ["make", target]:
            assert f"\n{target}:" in (ROOT / "Makefile").read_text()
        case ["python", script, *options]:
            text = (ROOT / script).read_text()
            assert [option for option in options if option.startswith("--") and f'"{option}"' not in text] == []
        case ["pip", "install", package]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(re.findall(r"\[(.*)\]", package)) <= extras.keys()
        case [other, *_]:
            assert other == "chromium"


def parse(words: list[str], folder: Path) -> None:
    """Parse a call of ``ohem`` as the command line would, and complete its recipe; nothing runs."""
    group: Any = typer.main.get_command(app)
    with group.make_context("ohem", words) as context:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        with command.make_context(name, rest, parent=context) as own:
            given = own.params
    if name == "train" and given["recipe"] is not None:
        recipe = given["recipe"]
        if recipe == "mine.yaml":
            recipe = str(folder / recipe)
            Path(recipe).write_text("base: lite0\n")
        load_recipe(recipe, given["overrides"] or [])


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.name)
def test_recipes_in_the_pages_are_recipes(page: Path) -> None:
    for block in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


def test_a_sampler_of_ones_own_trains_in_both_kinds_of_detectors() -> None:
    """The page's lines as they stand: whatever the sampler chose has left a gradient."""
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / "docs" / "own_sampler.md", "python"):
        exec(block, names)
    assert names["model"].roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
    assert names["detector"].head.cls_score.weight.grad.abs().sum() > 0
