"""What mkdocs does to our pages beside the ordinary: formulas become MathML, and files outside docs/ are named, not linked.

The site has no address of the repository to link to. MathML needs no script of another site.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

DOCS = Path(__file__).parent.parent / "docs"
OUTSIDE = re.compile(r"\[([^]]+)\]\((\.\./[^)#\s]+)(?:#[^)]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files of the repository that a page links to."""
    return OUTSIDE.sub(lambda found: _named(*found.groups()), markdown)


def _named(text: str, target: str) -> str:
    path = target.removeprefix("../")
    if path == "README.md":
        return f"[{text}](index.md)"
    if not (DOCS / target).exists():
        raise FileNotFoundError(f"docs: found a link to {target}; allowed: files of the repository")
    return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"


def on_page_content(content: str, **_: Any) -> str:
    """Formulas, in the text and on lines of their own."""
    return FORMULA.sub(lambda found: _formula(*found.groups()), content)


def _formula(tag: str, latex: str) -> str:
    return str(convert(html.unescape(latex), display="block" if tag == "div" else "inline"))
