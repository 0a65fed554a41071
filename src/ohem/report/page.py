"""Templates to pages: one HTML file each, that needs no network and no other file."""

from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def new_page(wanted: Path | None, default: Path) -> Iterator[Path]:
    """``wanted``, which must not exist; or the first free of ``NAME.html``, ``NAME-2.html``, ...

    An empty file is made there at once: a place that cannot be written to is found before anything long, and no other
    process takes it. It is removed when the block fails.

    Raises:
        OhemError: there is something at ``wanted``.
    """
    path = _claim_first(default) if wanted is None else wanted
    if wanted is not None:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        if not _claim(wanted):
            raise OhemError(f"{wanted}: found something there already; allowed: a new file")
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _claim_first(default: Path) -> Path:
    path, count = default, 1
    while not _claim(path):
        count += 1
        path = default.with_name(f"{default.stem}-{count}{default.suffix}")
    return path


def _claim(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
