"""Templates to pages: one HTML file each, that needs no network and no other file."""

from pathlib import Path
from typing import Any

import jinja2

from ohem.errors import OhemError
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


def free_page(wanted: Path | None, default: Path) -> Path:
    """``wanted``, which must not exist; or the first free of ``NAME.html``, ``NAME-2.html``, ...

    Raises:
        OhemError: there is something at ``wanted``.
    """
    if wanted is not None:
        if wanted.exists():
            raise OhemError(f"{wanted}: found something there already; allowed: a new file")
        return wanted
    path, count = default, 1
    while path.exists():
        count += 1
        path = default.with_name(f"{default.stem}-{count}{default.suffix}")
    return path
