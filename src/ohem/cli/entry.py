"""The entry point: runs the application, and turns errors that a user can mend into lines and an exit code."""

import sys
from io import TextIOWrapper

from ohem.cli.app import app
from ohem.errors import DataError, OhemError, printable

_AFTER = "allowed after mending it: the same command, or for a training --resume RUN"


def main() -> None:
    """Entry point: errors that the user can mend are one line each on stderr, and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    sys.unraisablehook = _pass_over_killed_workers
    try:
        app()
    except OhemError as error:
        lines = [*str(error).split("\n"), *getattr(error, "__notes__", [])]
        count = len(error.faults) if isinstance(error, DataError) else 0
        print("\n".join(map(printable, lines)), file=sys.stderr)
        if count > 1:
            print(f"{count} faults", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        from ohem.data.loading import KILLED_WORKER, is_of_killed_worker

        if not is_of_killed_worker(error):
            raise
        print(KILLED_WORKER, file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        # A full disk, a folder that may not be written to, a file that went away: nothing of it is ours to mend.
        where = f"{error.filename}: " if error.filename else ""
        found = printable(f"{where}found {error.strerror or error}")
        print(f"{found}; {_AFTER}", file=sys.stderr)
        sys.exit(2)


def _pass_over_killed_workers(found: "sys.UnraisableHookArgs") -> None:
    """torch raises its error a second time while the other workers are put away; once is told."""
    if "DataLoader worker" not in str(found.exc_value):
        sys.__unraisablehook__(found)
