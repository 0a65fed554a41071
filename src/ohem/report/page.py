"""Templates to pages: one HTML file each, that needs no network and no other file."""

from pathlib import Path
from typing import Any

import jinja2

from ohem.files import write_atomically


def write_page(path: Path, template: str, values: dict[str, Any]) -> None:
    """Render one of this folder's templates. Names from outside are escaped; drawings of ours are not."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    write_atomically(path, environment.get_template(template).render(values))
