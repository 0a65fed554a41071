"""What a person sees while commands run: sentences, tables, and progress with the time left. For programs: one JSON."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import rich.console
from pydantic_core import to_jsonable_python
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from ohem.errors import printable


class Console:
    """An :class:`ohem.opening.Reporter` on a terminal. Progress ends with its ``with`` block at the latest.

    Args:
        as_json: the answer is one JSON document, and stdout holds nothing else.
        quiet: nothing of what goes on and of what to do next, but the answer, and what was left out or is wrong.

    In either, all that is not the answer goes to stderr.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._answers = rich.console.Console(highlight=False)
        self._console = rich.console.Console(highlight=False, stderr=True) if as_json or quiet else self._answers
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,  # else the answer would go where the bar is
            disable=quiet or not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def out(self, markup: str) -> None:
        """Print with rich's markup."""
        self._console.print(markup)

    def say(self, text: str) -> None:
        """One sentence about what goes on or what to do next, with what could move the cursor escaped."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """One sentence about what was left out or is wrong."""
        _print(self._console, text)

    def answer(self, document: object) -> None:
        """The answer for programs: data classes, mappings, lists, paths and numbers; what is not finite becomes null."""
        if self.as_json:
            # Python's encoder escapes whatever is not ASCII, so that names of files may be any bytes.
            self._answers.out(json.dumps(to_jsonable_python(document, inf_nan_mode="null"), allow_nan=False))

    def result(self, text: str) -> None:
        """One sentence of the answer for people."""
        if not self.as_json:
            _print(self._answers, text)

    def progress(self, task: str, done: int, total: int) -> None:
        """Move the task's bar; it vanishes when all is done."""
        self._progress.start()
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total)
        self._progress.update(self._tasks[task], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(task))

    def record(self, record: Mapping[str, Any]) -> None:
        """A log record of training: a line for each window of the log and each validation."""
        if record["kind"] == "progress":
            self.progress(record["task"], record["done"], record["total"])
        elif record["kind"] == "train":
            selected, all_rois = (
                "-" if loss is None else f"{loss:.3f}"
                for loss in (record["loss_selected_rois"], record["loss_all_rois"])
            )
            seconds = record["seconds"]
            self.say(
                f"iteration {record['iteration']:>6}  lr {record['lr']:.2g}"
                f"  loss: selected {selected}, all RoIs {all_rois}"
                f"  foreground {100 * record['foreground_share']:.0f} %"
                f"  s/step: data {seconds['data']:.2f}, ranking {seconds['ranking']:.2f},"
                f" training {seconds['training']:.2f}"
                + (f"  skipped {record['skipped']}" if record.get("skipped") else "")
            )
        elif record["kind"] == "validation":
            name, value = next((k, v) for k, v in record.items() if k not in ("kind", "iteration"))
            told = "not known, without an object to find" if value is None else f"{100 * value:.1f} %"
            self.say(f"iteration {record['iteration']:>6}  validation {name} mAP {told}")

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table of the answer for people; numbers to the right."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", show_header=any(header), box=None, pad_edge=False)
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self._answers.print(table, markup=False)


def _print(console: rich.console.Console, text: str) -> None:
    console.print(printable(text), markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return printable(str(value))
