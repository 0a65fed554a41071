"""Commands that make pages to look at. Each says what it needs and calls one function."""

from pathlib import Path
from typing import Annotated

import typer

from ohem.cli.app import command
from ohem.cli.options import BadBoxes, Data, Device, OtherClasses, ProposalFiles, Workers
from ohem.console import Console


@command()
def report(
    console: Console,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs; the others are compared with the first.")],
    data: Annotated[
        list[str] | None, typer.Option("--data", help="What they were evaluated on, where they do not say or it moved.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The new page; default: report.html in the run.")] = None,
    images: Annotated[
        int, typer.Option(min=0, help="Training images searched for the hardest regions of each run; 0: all.")
    ] = 300,
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Look at runs: one HTML page on learning, mining, accuracy, errors, cost, with pictures of what is hard.

    Examples: [cyan]ohem report runs/lite0[/cyan],
    [cyan]ohem report runs/random runs/hard --out both.html[/cyan]
    """
    from ohem.report.report import make_report

    page = make_report(
        runs, data=data or [], out=out, most_images=images, device=device, workers=workers, reporter=console
    )
    console.answer({"page": page})
    console.result(f"page: {page}")


@command("inspect")
def inspect_data(
    console: Console,
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    data: Data,
    proposals: ProposalFiles = None,
    out: Annotated[Path | None, typer.Option(help="New folder; default in the run.")] = None,
    shown: Annotated[int, typer.Option(min=1, help="So many suspects are in the page and the COCO JSON.")] = 300,
    history: Annotated[bool, typer.Option(help="Ask the run's snapshots too (snapshot_every=N).")] = False,
    other_classes: OtherClasses = "drop",
    bad_boxes: BadBoxes = "error",
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Find annotations that are likely wrong: missing, of a wrong class, badly placed, or on nothing.

    Nothing of the data is changed. The page shows each with a proposed fix; the COCO JSON opens in annotation tools.

    Example: [cyan]ohem inspect runs/lite0 --data MY_DATA@train[/cyan]
    """
    from ohem.report.inspection import inspect_annotations
    from ohem.report.suspects import KINDS

    found = inspect_annotations(
        run,
        data,
        proposals=proposals or [],
        out=out,
        shown=shown,
        history=history,
        other_classes=other_classes,
        bad_boxes=bad_boxes,
        device=device,
        workers=workers,
        reporter=console,
    )
    top = found.suspects[:shown]
    kinds = {kind: sum(one.kind == kind for one in top) for kind in KINDS}
    console.answer({"folder": found.folder, "suspects": len(found.suspects), "shown": len(top), "kinds": kinds})
    console.table("suspects", ("", f"of the first {len(top)}"), kinds.items())
    console.result(f"suspects.html, suspects.csv, suspects.json (COCO) are in {found.folder}")
