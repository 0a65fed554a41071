"""A run seen from another process: where its training is, by its log. Nothing of the run is written, nothing of it locked."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ohem.errors import OhemError
from ohem.training.run import RECORD, Run, read_record

QUIET_SECONDS = 60.0
"""Shorter silences are never told of."""
QUIET_WINDOWS = 5
"""A run is quiet when it has written nothing for the time of so many windows of its log."""

State = Literal["waiting", "running", "quiet", "finished"]


@dataclass(frozen=True)
class Snapshot:
    """Where a training is.

    Attributes:
        state: ``waiting`` has logged no step yet; ``quiet`` has written nothing for long: killed, stopped, or in a long
            validation; ``finished`` has saved its weights.
        iteration: of the last record; 0 before the first.
        iterations: of the whole training.
        seconds_per_step: mean over the last windows of the log, validation not included; None before the first.
        seconds_left: of the steps that are left, at that speed; None where it is not known.
        seconds_silent: since the run wrote last.
        iterations_logged: the iterations of the three lists that follow.
        loss_selected: mean loss over the RoIs that trained; None where none were.
        loss_all: mean loss over all RoIs; None in windows where it was not measured.
        foreground: share of foreground among those that trained, 0 to 1.
        lr: the learning rate; None before the first record.
        validation: iteration, metric, value (0 to 1) of the last validation, if any.
    """

    state: State
    iteration: int
    iterations: int
    seconds_per_step: float | None
    seconds_left: float | None
    seconds_silent: float
    iterations_logged: tuple[int, ...]
    loss_selected: tuple[float | None, ...]
    loss_all: tuple[float | None, ...]
    foreground: tuple[float | None, ...]
    lr: float | None
    validation: tuple[int, str, float] | None


class Watcher:
    """Reads what was added to a run's log since it was asked last, so that a long log costs no more than a short one.

    Args:
        folder: of the run.

    Raises:
        OhemError: it is no run.
    """

    def __init__(self, folder: Path) -> None:
        self._run = Run.open(folder)
        self._iterations = self._run.recipe().iterations
        self._metric = self._run.recipe().evaluation.metric
        self._log_every = self._run.recipe().log_every
        self._forget()

    def _forget(self) -> None:
        self._read, self._file = 0, -1
        self._windows: list[dict[str, Any]] = []
        self._validation: tuple[int, str, float] | None = None

    def look(self) -> Snapshot:
        """The run now.

        Raises:
            OhemError: a line of the log is no record, or the run's folder is gone.
        """
        self._read_on()
        windows = self._windows
        iteration = windows[-1]["iteration"] if windows else 0
        recent = [sum(window["seconds"].values()) for window in windows[-10:] if window.get("seconds")]
        speed = sum(recent) / len(recent) if recent else None
        silent = self._silent()
        state = self._state(silent, speed)
        left = None if speed is None or state == "quiet" else speed * (self._iterations - iteration)
        return Snapshot(
            state,
            iteration,
            self._iterations,
            speed,
            0.0 if state == "finished" else left,
            silent,
            tuple(window["iteration"] for window in windows),
            _column(windows, "loss_selected_rois"),
            _column(windows, "loss_all_rois"),
            _column(windows, "foreground_share"),
            windows[-1].get("lr") if windows else None,
            self._validation,
        )

    def _state(self, silent: float, speed: float | None) -> State:
        if self._run.weights_file.exists():
            return "finished"
        if not self._windows:  # how long the first may take is not known
            return "waiting"
        quiet = silent > max(QUIET_SECONDS, QUIET_WINDOWS * self._log_every * (speed or 0.0))
        return "quiet" if quiet else "running"

    def _read_on(self) -> None:
        log = self._run.log_file
        if not log.exists():
            return
        with log.open("rb") as file:
            if log.stat().st_ino != self._file or log.stat().st_size < self._read:
                self._forget()  # a resumed run wrote its log anew
                self._file = log.stat().st_ino
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half-written
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        record = read_record(line)
        if record is None:
            raise OhemError(f"{self._run.log_file}: found {line[:80].decode(errors='replace')!r}; allowed: {RECORD}")
        if record["kind"] == "train":
            # "mined" is most of a record, and nothing here shows it.
            self._windows.append({name: value for name, value in record.items() if name != "mined"})
        elif record["kind"] == "validation" and record.get(self._metric) is not None:
            self._validation = (record["iteration"], self._metric, record[self._metric])

    def _silent(self) -> float:
        files = (self._run.log_file, self._run.info_file, self._run.checkpoint_file)
        written = [file.stat().st_mtime for file in files if file.exists()]
        if not written:
            raise OhemError(f"{self._run.folder}: found nothing of the run any more; allowed: a folder that is kept")
        return max(0.0, time.time() - max(written))


def _column(windows: Sequence[dict[str, Any]], name: str) -> tuple[float | None, ...]:
    return tuple(window.get(name) for window in windows)


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """The course of values in at most ``width`` characters, each the mean of its part; lowest to highest fills the height."""
    known = [value for value in values if value is not None]
    count = min(width, len(known))
    parts = [known[i * len(known) // count : (i + 1) * len(known) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (mean - low) / (high - low)) if high > low else 0] for mean in means)
