"""The application that the commands join, and what it says when none is given."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from ohem.console import Console

app = typer.Typer(
    name="ohem",
    help="Train region-based object detectors on hard examples (Shrivastava et al., CVPR 2016).",
    no_args_is_help=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

NEXT = """[bold]ohem[/bold] trains region-based object detectors on hard examples. What next?

  [cyan]ohem demo[/cyan]                                        see it work, no data needed
  [cyan]ohem data[/cyan]                                        get the paper's data
  [cyan]ohem check[/cyan] MY_DATA@train                         find faults of a data set
  [cyan]ohem train[/cyan] lite0 --data MY_DATA@train            proposals, training
  [cyan]ohem watch[/cyan] runs/lite0                            how a training stands
  [cyan]ohem evaluate[/cyan] runs/lite0 --data MY_DATA@test     average precision
  [cyan]ohem detect[/cyan] runs/lite0 photos/                   pictures with boxes drawn
  [cyan]ohem report[/cyan] runs/lite0                           a page of what it learned and got wrong
  [cyan]ohem inspect[/cyan] runs/lite0 --data MY_DATA@train     annotations that are likely wrong

  [cyan]ohem COMMAND --help[/cyan] explains the rest."""


AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as one JSON document, and only that.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer, and what was left out; no progress.")]

_P = ParamSpec("_P")


def command(name: str | None = None) -> Callable[[Callable[Concatenate[Console, _P], None]], Callable[..., None]]:
    """Make a function a command, and give it what all have: a console as its first argument, and how that speaks.

    The options of the command are the function's other parameters, with ``--json`` and ``--quiet`` after them.
    """

    def register(function: Callable[Concatenate[Console, _P], None]) -> Callable[..., None]:
        @wraps(function)
        def run(*args: Any, as_json: bool, quiet: bool, **kwargs: Any) -> None:
            with Console(as_json=as_json, quiet=quiet) as console:
                function(console, *args, **kwargs)

        def shared(as_json: AsJson = False, quiet: Quiet = False) -> None: ...

        of_function, of_all = (inspect.signature(each, eval_str=True).parameters for each in (function, shared))
        run.__signature__ = inspect.Signature([*list(of_function.values())[1:], *of_all.values()])  # type: ignore[attr-defined]
        run.__annotations__ = {}  # typer reads the signature
        return app.command(name)(run)

    return register


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Say what to do next when no command is given."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("ohem"))
    elif context.invoked_subcommand is None:
        console = Console()
        console.out(NEXT)
        for sentence in next_of_runs(Path("runs")):
            console.say(sentence)


def next_of_runs(folder: Path, most: int = 3) -> list[str]:
    """What to do with the newest runs in a folder; told by their files alone, so that torch need not be loaded."""
    runs = sorted(folder.glob("*/run.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    sentences = [_next_of_run(file.parent) for file in runs[:most]]
    return ["", "Runs here, the newest first:", *sentences] if sentences else []


def _next_of_run(run: Path) -> str:
    name = quote(str(run))
    if not (run / "weights.safetensors").exists():
        return f"  {run} is not finished: ohem watch {name}, or if it was stopped: ohem train --resume {name}"
    if not any(run.glob("*/metrics.json")):
        return f"  {run} is trained: ohem evaluate {name} --data DATA"
    return f"  {run} is evaluated: ohem report {name}"
