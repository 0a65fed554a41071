"""Errors that a user can mend: one line each, naming the file, the field, what was found and what is allowed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path


class OhemError(Exception):
    """Bad input or a state the user can mend. The command line prints its text, no traceback, and exits with 2."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A guess at what a mistyped name should be, in brackets; empty where none is near, as to what is no text."""
    # What is no text is not made one: a YAML file of a line can hold a list of a billion items.
    close = get_close_matches(name, list(known), 1) if isinstance(name, str) else []
    return f" (did you mean {close[0]}?)" if close else ""


def printable(text: str) -> str:
    """The text with line breaks, control characters and bytes that are no text escaped, as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@dataclass(frozen=True, order=True)
class Fault:
    """One thing wrong in one file.

    Attributes:
        file: the file that holds the fault.
        field: the part of it, such as ``object[2].bndbox`` or ``annotations[7].bbox``; may be empty.
        found: what stands there.
        allowed: what may stand there.
    """

    file: Path
    field: str
    found: str
    allowed: str

    def __str__(self) -> str:
        file = printable(str(self.file))
        where = f"{file}: {self.field}" if self.field else file
        return f"{where}: found {self.found}; allowed: {self.allowed}"


class DataError(OhemError):
    """A data set, proposal file or weights file with faults, all of them listed.

    Attributes:
        faults: every fault found, in the order of the files.
    """

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type["DataError"], tuple[tuple[Fault, ...]]]:
        """Faults found in another process arrive as faults."""
        return DataError, (self.faults,)
