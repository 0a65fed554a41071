"""Commands over many runs: the paper's tables, and comparisons. Each says what it needs and calls one function."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ohem.cli.app import command
from ohem.cli.completion import recipe_names, targets
from ohem.cli.options import Classes, Device, Workers, class_names
from ohem.console import Console
from ohem.errors import OhemError

if TYPE_CHECKING:
    from ohem.studies.report import Report


@command()
def reproduce(
    console: Console,
    target: Annotated[
        str,
        typer.Argument(
            help="table1 to table6, figure3, claims, rivals, joins, rankings, or lengths.", autocompletion=targets
        ),
    ],
    scale: Annotated[Literal["mini", "full"], typer.Option(help="One small network, or the paper's.")] = "mini",
    data: Annotated[
        str | None,
        typer.Option(
            help="full: the folder of ohem data. mini: a VOC folder with trainval and test; default: built-in."
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(help="mini: the test images, where --data is one split.")] = None,
    coco: Annotated[str | None, typer.Option(help="mini: a cluttered COCO set, for table5, C9 and C12.")] = None,
    classes: Classes = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="mini: what all trainings share; default: mini, or mini_demo on built-in data.",
            autocompletion=recipe_names,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each row.")] = 5,
    out: Annotated[Path, typer.Option(help="Results, runs and pages.")] = Path("reproduce"),
    shard: Annotated[str, typer.Option(metavar="I/N", help="Run this part of N; give each machine its own.")] = "0/1",
    collect: Annotated[list[Path] | None, typer.Option(help="Take over the results of another --out; repeat.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what is done and what remains, and run nothing.")] = False,
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Run a table, figure or all claims of the paper: what is finished is skipped, and a killed run goes on.

    Each training leaves a small JSON in OUT/results; tables are made of those. Learning rates of --scale mini are tuned
    for every row on held-out training images.

    Examples: [cyan]ohem reproduce table1[/cyan], [cyan]ohem reproduce claims --data MY_VOC --seeds 3[/cyan],
    [cyan]ohem reproduce table3 --scale full --data DIR --seeds 1 --shard 0/4[/cyan]
    """
    from ohem.studies import reproduce as study
    from ohem.studies.report import to_json
    from ohem.studies.runner import duration
    from ohem.studies.workshop import Workshop

    sharing = study.Sharing.parse(shard)
    if plan and collect:
        raise OhemError("reproduce: found --collect beside --plan, which writes nothing; allowed: one after the other")
    opened = study.open_study(
        target,
        scale,
        out,
        data=data,
        test=test,
        coco=coco,
        classes=class_names(classes) or (),
        recipe=recipe,
        progress=None if plan else partial(console.progress, "drawing images"),
    )
    workshop = Workshop(opened, out, console, device, workers)
    for folder in collect or []:
        console.say(f"{folder}: {study.collect(workshop, target, seeds, folder)} results taken over")
    jobs, progress = study.plan(workshop, target, seeds, sharing)
    left = "" if progress.seconds is None else f", about {duration(progress.seconds)} of one process"
    told = f"{target}: {progress.done} of {len(jobs)} jobs done, {len(progress.left)} left{left}"
    if plan:
        left_names = [job.name for job in progress.left]
        console.answer({"jobs": len(jobs), "done": progress.done, "left": left_names, "seconds": progress.seconds})
        console.result(told)
        console.table("left to run", ("", ""), [(name, "") for name in left_names])
        return
    console.say(told)
    try:
        report, page = study.reproduce(workshop, target, seeds, sharing)
    except KeyboardInterrupt:
        console.warn(f"stopped; the same command goes on from {out}")
        raise typer.Exit(130) from None
    console.answer({"page": page, **to_json(report)})
    _print_report(report, console)
    console.result(f"page: {page}, numbers: {page.with_suffix('.json')}")


def _print_report(report: "Report", console: Console) -> None:
    from ohem.studies.report import COST_HEADER, TEXT_HEADER, text_rows

    for table in report.tables:
        console.table(f"{table.table.name}: {table.table.title}", TEXT_HEADER, text_rows(table))
    if report.costs:
        console.table("table2: cost of a training step", COST_HEADER, report.costs)
    for each in report.judgements:
        console.result(f"{each.claim.id} {each.verdict}: {each.claim.statement}")
        for label, value in each.evidence.measured:
            console.result(f"    {label}: {value}")
    for name, why in report.not_run:
        console.result(f"not run: {name}: {why}")


@command()
def compare(
    console: Console,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Evaluated runs; the first one's arm is the base.")
    ],
) -> None:
    """Compare runs that differ in more than their seed, paired by seed: mean differences with 95 % intervals.

    Example: [cyan]ohem compare runs/random-0 runs/random-1 runs/hard-0 runs/hard-1[/cyan]
    """
    from ohem.studies.compare import METRICS
    from ohem.studies.compare import compare as compare_runs

    found = compare_runs(runs)
    console.answer(found)
    for warning in found.warnings:
        console.warn(f"warning: {warning}")
    for i, arm in enumerate(found.arms):
        rows: list[tuple[str, ...]] = []
        for metric in METRICS:
            values = [arm.values[seed][metric] for seed in sorted(arm.values) if metric in arm.values[seed]]
            mean = f"{sum(values) / len(values):.1f}" if values else "-"
            difference = found.differences[i - 1][metric] if i else None
            gain = f"{difference[0]} (n = {difference[1]})" if difference else "-"
            rows.append((metric, mean, gain))
        seeds = ", ".join(map(str, sorted(arm.values)))
        console.table(f"{arm.label} (seeds {seeds})", ("", "mean, %", "difference to the first, 95 %"), rows)
