"""What a person sees while commands run: sentences, tables, and progress with the time left."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import rich.console
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
    """A reporter for :mod:`ohem.workflow` on a terminal. Progress shows inside its ``with`` block."""

    def __init__(self) -> None:
        self._console = rich.console.Console(highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Console":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def out(self, markup: str) -> None:
        """Print with rich's markup."""
        self._console.print(markup)

    def say(self, text: str) -> None:
        """One sentence, with no markup of its own, and what could move the cursor escaped."""
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def progress(self, task: str, done: int, total: int) -> None:
        """Move the task's bar; it vanishes when all is done."""
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
            self.say(f"iteration {record['iteration']:>6}  validation {name} mAP {100 * value:.1f} %")

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; numbers to the right."""
        table = Table(title=title, title_justify="left", show_header=any(header), box=None, pad_edge=False)
        for i, name in enumerate(header):
            table.add_column(name, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self._console.print(table, markup=False)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}"
    return printable(str(value))
