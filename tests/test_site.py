"""The documentation as a site: it builds without a warning, each page can be found, and viewing one asks no network."""

import importlib
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from doc_blocks import PAGES, ROOT

DOCS = ROOT / "docs"


class Page(HTMLParser):
    """The links of a page's text, and every address that a browser fetches to show the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        text = path.read_text()
        self.feed(text)
        self.text = text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "a":
            self.links.append(named.get("href") or "")
        elif tag != "link" or named.get("rel") != "canonical":
            self.fetched += [named[key] or "" for key in ("src", "href", "srcset", "data") if key in named]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("site_hooks")


def test_every_page_is_built_and_none_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = {path.stem: Page(path) for path in site.glob("*.html")}
    assert set(pages) == {path.stem for path in DOCS.glob("*.md")} | {"404"}
    for name, page in pages.items():
        assert page.fetched, name
        assert [address for address in page.fetched if re.match(r"(\w+:)?//", address)] == [], name
    for sheet in site.rglob("*.css"):
        assert re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text()) is None, sheet


def test_formulas_are_drawn_without_a_script(site: Path) -> None:
    text = (site / "samplers.html").read_text()
    sources = (DOCS / "samplers.md").read_text()
    prose = re.sub(r"`[^`]*`", "", re.sub(r"```.*?```", "", sources, flags=re.DOTALL))
    formulas = re.findall(r"\$\$.*?\$\$|\$[^$]+\$", prose, re.DOTALL)
    assert len(formulas) > 10
    assert text.count("<math ") == len(formulas)
    assert "arithmatex" not in text
    assert "\\frac" not in text


def test_a_reader_gets_from_the_first_page_to_every_other_by_links_in_the_text() -> None:
    """The menu aside, which a reader of the files has not."""
    to_see, seen = ["index.md"], {"index.md"}
    while to_see:
        text = (DOCS / to_see.pop()).read_text()
        new = {name for name in re.findall(r"\]\((\w+\.md)(?:#[\w-]+)?\)", text) if name not in seen}
        seen |= new
        to_see += sorted(new)
    assert seen == {path.name for path in DOCS.glob("*.md")}


def test_headings_that_pages_outside_the_site_lead_to_exist(site: Path) -> None:
    """Of links between its own pages, the strict build sees to that."""
    seen = 0
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        for name, heading in re.findall(r"\]\([./]*docs/(\w+)\.md#([\w-]+)\)", page.read_text()):
            assert f'id="{heading}"' in (site / f"{name}.html").read_text(), f"{page.name}: {name}.md#{heading}"
            seen += 1
    assert seen > 3


def links_to_files(page: Path) -> list[str]:
    return re.findall(r"\]\(((?!https?:)[^)#\s]+)(?:#[\w-]+)?\)", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    assert [link for link in links_to_files(page) if not (page.parent / link).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    assert {Path(link).name for link in links_to_files(ROOT / "README.md")} >= {
        path.name for path in DOCS.glob("*.md") if path.name != "index.md"
    }


def test_a_link_out_of_the_pages_is_shown_as_its_path(hooks: ModuleType) -> None:
    written = "See [`samplers.py`](../src/ohem/samplers.py), [them](../benchmarks/results), [home](../README.md), [this](faq.md)."
    assert hooks.on_page_markdown(written) == (
        "See `src/ohem/samplers.py`, them (`benchmarks/results`), [home](index.md), [this](faq.md)."
    )
    with pytest.raises(FileNotFoundError, match=r"found a link to \.\./src/none\.py"):
        hooks.on_page_markdown("[none](../src/none.py)")


def small_site(folder: Path, pages: dict[str, str], nav: list[str]) -> None:
    """Build pages of our own with the site's settings, strictly, in a plain theme."""
    (folder / "docs").mkdir(parents=True)
    for name, text in pages.items():
        (folder / "docs" / name).write_text(text)
    paths = {"docs_dir": str(folder / "docs"), "site_dir": str(folder / "site")}
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, theme="mkdocs", nav=nav, extra_css=[], **paths))


SOUND = {"index.md": "# Start\n\n[questions](faq.md#questions)\n", "faq.md": "# Questions\n"}


@pytest.mark.parametrize("fault", ["[x](none.md)", "[x](faq.md#no-such-heading)", "[x](#no-such-heading)"])
def test_a_dead_link_or_anchor_stops_the_build(fault: str, tmp_path: Path) -> None:
    with pytest.raises(Abort):
        small_site(tmp_path, {**SOUND, "index.md": f"# Start\n\n{fault}\n"}, list(SOUND))


def test_a_sound_link_does_not(tmp_path: Path) -> None:
    small_site(tmp_path, SOUND, list(SOUND))


def test_a_page_that_no_menu_leads_to_stops_the_build(tmp_path: Path) -> None:
    with pytest.raises(Abort):
        small_site(tmp_path, {"index.md": "# Start\n", "lost.md": "# Lost\n"}, ["index.md"])
