"""What the documentation shows as code: its fenced blocks, the commands in them, and the code in its sentences."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: the page, the line on which it opens, and its text."""

    page: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


class Words(NamedTuple):
    """A command line in words, and where it stands."""

    place: str
    words: list[str]


def blocks(language: str) -> list[Block]:
    return [
        Block(page, text.count("\n", 0, match.start()) + 1, match[3])
        for page, text in ((page, page.read_text()) for page in PAGES)
        for match in _FENCE.finditer(text)
        if match[2] == language
    ]


def shell_lines() -> list[Words]:
    """The commands behind prompts and in scripts, without what joins them (``&&``, ``>``, loops, ``$( )``)."""
    lines = []
    for block in blocks("bash"):
        for line in block.text.splitlines():
            lines += [Words(block.place, words) for words in _commands(re.sub(r"(?:\w+=)?\$\((.*)\)", r"\1", line))]
    for block in blocks("console"):
        for line in block.text.splitlines():
            if line.startswith("$ "):
                lines += [Words(block.place, words) for words in _commands(line.removeprefix("$ "))]
    return lines


def _commands(line: str) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|>"):
            commands.append([])
        elif word not in ("do", "done"):
            commands[-1].append(word)
    return [words for words in commands if words]


def inline_code() -> list[Words]:
    """The code in sentences and tables, split as a shell does, up to what joins commands."""
    found = []
    for page in PAGES:
        text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
        for match in re.finditer(r"`([^`]+)`", text):
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
            try:
                found += [Words(place, words) for words in _commands(match[1])[:1]]
            except ValueError:  # code, but no shell's
                continue
    return found
