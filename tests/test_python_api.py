"""The public names: every one explains itself. That the README's lines run is in test_docs.py."""

import inspect
import re

import pytest

import ohem


@pytest.mark.parametrize("name", ohem.__all__)
def test_every_public_name_explains_itself(name: str) -> None:
    """A docstring of its own, and in it every argument that a caller may give."""
    value = getattr(ohem, name)
    text = inspect.getdoc(value) or ""
    assert text
    if inspect.isfunction(value):
        missing = [one for one in inspect.signature(value).parameters if not re.search(rf"\b{one}\b", text)]
        assert missing == []
