"""The command that follows a training from another terminal. It says what it needs and calls one function."""

import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ohem.cli.app import command
from ohem.console import Console

if TYPE_CHECKING:
    from rich.table import Table

    from ohem.watching import Snapshot


@command()
def watch(
    console: Console,
    run: Annotated[Path, typer.Argument(help="A run's folder; it may be training, finished or killed.")],
    once: Annotated[bool, typer.Option("--once", help="Print how it stands, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Follow a training from another terminal, until it is finished or Ctrl-C. Reads the run's log; writes nothing.

    With --json, as with --once, it prints how the run stands, and ends.

    Examples: [cyan]ohem watch runs/lite0[/cyan], [cyan]ohem watch runs/lite0 --once[/cyan]
    """
    from rich.console import Console as Terminal
    from rich.live import Live

    from ohem.watching import Watcher

    watcher, terminal = Watcher(run), Terminal(highlight=False)
    if console.as_json:
        console.answer(watcher.look())
    elif once or not terminal.is_terminal:
        terminal.print(_view(watcher.look()))
    else:
        with Live(_view(found := watcher.look()), console=terminal, auto_refresh=False) as live:
            try:
                while found.state != "finished":
                    time.sleep(every)
                    found = watcher.look()
                    live.update(_view(found), refresh=True)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None


def _view(found: "Snapshot") -> "Table":
    from rich.table import Table

    from ohem.watching import sparkline

    view = Table(show_header=False, box=None, pad_edge=False)
    view.add_row("state", _state(found))
    view.add_row("iteration", f"{found.iteration} of {found.iterations}")
    if found.seconds_per_step is not None:
        view.add_row("step", f"{found.seconds_per_step:.2f} s")
    if found.seconds_left:
        view.add_row("left", f"{timedelta(seconds=round(found.seconds_left))}, validation not counted")
    for name, values in (("loss, selected", found.loss_selected), ("loss, all RoIs", found.loss_all)):
        known = [value for value in values if value is not None]
        if known:
            view.add_row(name, f"{known[-1]:.3f}  {sparkline(values)}")
    if found.foreground and found.foreground[-1] is not None:
        view.add_row("foreground", f"{100 * found.foreground[-1]:.0f} %  {sparkline(found.foreground)}")
    if found.lr is not None:
        view.add_row("learning rate", f"{found.lr:.2g}")
    if found.validation:
        iteration, metric, value = found.validation
        view.add_row("validation", f"{metric} mAP {100 * value:.1f} %, at iteration {iteration}")
    return view


def _state(found: "Snapshot") -> str:
    silent = f"nothing written for {timedelta(seconds=round(found.seconds_silent))}"
    if found.state == "waiting":
        return f"nothing logged yet; {silent}"
    return f"{silent}: killed, stopped, or in a long validation" if found.state == "quiet" else found.state
