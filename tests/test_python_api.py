"""The public names: what the README shows runs as it stands, and every name explains itself."""

import inspect
import re
import shutil
from pathlib import Path

import pytest

import ohem
from corruptions import make_yolo
from test_cli import SMALL

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    code = next(block for block in blocks if "ohem.train(" in block)
    small = '"sampler=hard", ' + ", ".join(f'"{setting}"' for setting in [*SMALL, "iterations=2"])
    assert '"sampler=hard"' in code
    make_yolo(tmp_path / "MY_DATA")
    with (tmp_path / "MY_DATA" / "data.yaml").open("a") as file:
        file.write("test: images/train\n")
    shutil.copytree(tmp_path / "MY_DATA" / "images" / "train", tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OHEM_CACHE", str(tmp_path / "cache"))
    exec(code.replace('"sampler=hard"', small), {})
    assert (tmp_path / "runs/run/report.html").read_text().rstrip().endswith("</html>")
    assert len(list((tmp_path / "detections").glob("*.jpg"))) == 3


@pytest.mark.parametrize("name", ohem.__all__)
def test_every_public_name_explains_itself(name: str) -> None:
    """A docstring of its own, and in it every argument that a caller may give."""
    value = getattr(ohem, name)
    text = inspect.getdoc(value) or ""
    assert text
    if inspect.isfunction(value):
        missing = [one for one in inspect.signature(value).parameters if not re.search(rf"\b{one}\b", text)]
        assert missing == []
