"""Writing files so that a reader never sees half of one, into folders where nothing is yet."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ohem.errors import OhemError


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``path`` when the block ends well, and vanishes when it does not.

    It is a temporary file beside ``path``, flushed to disk before the rename. The folder is made when missing.

    Raises:
        OSError: with the path, when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # torch says of a full disk that its own archive is broken, and hides the reason behind that.
        reason = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(reason, OSError):
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing; text as UTF-8. See :func:`atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_folder(wanted: Path | str | None, default: Path) -> Iterator[Path]:
    """``wanted``, which must be new or empty; or the first free of ``default``, ``default-2``, ...

    It is made at once: a place that cannot be written to is found before anything long, and no other process takes it.
    If nothing comes into it, it is removed.

    Raises:
        OhemError: there is something in ``wanted``.
    """
    if wanted is None:
        folder, ours = _claim(default), True
    else:
        folder = Path(wanted)
        require_free(folder)
        ours = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if ours and not any(folder.iterdir()):
            folder.rmdir()


def _claim(default: Path) -> Path:
    while True:
        folder = next_folder(default)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # another process was quicker
            continue
        return folder


def user_path(name: str) -> Path:
    """A path as a user writes it: ``~`` is the home of a user, where nothing has that name here and there is one."""
    path = Path(name)
    try:
        return path if path.exists() else path.expanduser()
    except RuntimeError:  # no such user
        return path


def require_free(folder: Path) -> None:
    """Raise OhemError where there is something in a folder, or a file of its name, or a link that leads nowhere."""
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise OhemError(f"{folder}: found something there already; allowed: a new or empty folder")


def require_new_file(path: Path) -> None:
    """Raise OhemError where there is something at ``path`` already, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise OhemError(f"{path}: found something there already; allowed: a new file")


def require_suffix(path: Path, suffix: str) -> None:
    """Raise OhemError where a file that is to be written would not be known by its name afterwards."""
    if path.suffix.lower() != suffix:
        raise OhemError(f"{path}: found a file name that ends in {path.suffix!r}; allowed: {suffix}")


def next_folder(folder: Path) -> Path:
    """The folder itself, or the first of ``folder-2``, ``folder-3``, ... that does not exist."""
    found, count = folder, 1
    while os.path.lexists(found):
        count += 1
        found = folder.with_name(f"{folder.name}-{count}")
    return found


@contextmanager
def new_file(wanted: Path | None, default: Path) -> Iterator[Path]:
    """``wanted``, which must not exist; or the first free of ``NAME.html``, ``NAME-2.html``, ...

    It is made at once, and empty, as in :func:`new_folder`. It is removed when the block fails.

    Raises:
        OhemError: there is something at ``wanted``.
    """
    path, count = wanted or default, 1
    path.parent.mkdir(parents=True, exist_ok=True)
    while not _made(path):
        if wanted is not None:
            require_new_file(wanted)
            continue  # it has gone since
        count += 1
        path = default.with_name(f"{default.stem}-{count}{default.suffix}")
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _made(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
