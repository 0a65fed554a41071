"""The command line. Each command says what it needs and calls one function; torch is imported only by those that run."""

import math
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ohem.console import Console
from ohem.errors import DataError, OhemError, printable

if TYPE_CHECKING:
    from ohem.studies.report import Report

app = typer.Typer(
    name="ohem",
    help="Train region-based object detectors on hard examples (Shrivastava et al., CVPR 2016).",
    no_args_is_help=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA_HELP = "A VOC folder, COCO JSON file or folder, and after it, if anything, @SPLIT. Repeat to join several."
PROPOSALS_HELP = "Proposal file (.mat, .json, .sqlite); repeat for several. Without: selective search, made and kept."

Data = Annotated[list[str], typer.Option("--data", help=DATA_HELP)]
DataArgument = Annotated[list[str], typer.Argument(metavar="DATA...", help=DATA_HELP)]
ProposalFiles = Annotated[list[str] | None, typer.Option("--proposals", help=PROPOSALS_HELP)]
Classes = Annotated[str | None, typer.Option(help="Class names in order, with commas between; default: the data's.")]
OtherClasses = Annotated[
    Literal["error", "drop"], typer.Option(help="Objects of classes not in the list: refuse, or leave out and count.")
]
BadBoxes = Annotated[
    Literal["error", "drop"], typer.Option(help="Reversed, empty or outside boxes: refuse, or leave out and count.")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images. Does not change results.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: cuda where there is one.")]

NEXT = """[bold]ohem[/bold] trains region-based object detectors on hard examples. What next?

  [cyan]ohem demo[/cyan]                                        see it work, no data needed
  [cyan]ohem data[/cyan]                                        get the paper's data
  [cyan]ohem check[/cyan] MY_DATA@train                         find faults of a data set
  [cyan]ohem train[/cyan] lite0 --data MY_DATA@train            proposals, training
  [cyan]ohem evaluate[/cyan] runs/lite0 --data MY_DATA@test     average precision
  [cyan]ohem detect[/cyan] runs/lite0 photos/                   pictures with boxes drawn
  [cyan]ohem report[/cyan] runs/lite0                           a page of what it learned and got wrong
  [cyan]ohem inspect[/cyan] runs/lite0 --data MY_DATA@train     annotations that are likely wrong

  [cyan]ohem COMMAND --help[/cyan] explains the rest."""


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
        Console().out(NEXT)


@app.command("data")
def get_data(
    name: Annotated[str | None, typer.Argument(help="One of the list that [cyan]ohem data[/cyan] prints.")] = None,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Where to unpack it; made if missing.")] = None,
) -> None:
    """Get the data of the paper: images, annotations, published proposals and weights. Alone: list what there is.

    Can be stopped and started again. Nothing in DIR is written over. Without a network it says which files to put
    there by hand.

    Example: [cyan]ohem data voc07 voc[/cyan]
    """
    from ohem.data.download import get, in_words
    from ohem.data.published import PUBLISHED, find_published

    if name is None:
        for one in PUBLISHED:
            typer.echo(f"{one.name:<18}{in_words(one.size):>8}  {one.what}")
            typer.echo(f"{'':<28}{', '.join(one.hosts)}; {one.licence}")
        return
    published = find_published(name)
    if folder is None:
        raise OhemError(f"data: found no folder; allowed: ohem data {name} DIR")
    with Console() as console:
        arguments = get(published, folder, say=console.say, progress=console.progress)
        console.say(f"{published.what}; to use:")
        for argument in arguments:
            console.say(f"  {argument}")


@app.command()
def check(
    data: DataArgument,
    classes: Classes = None,
    other_classes: OtherClasses = "error",
    bad_boxes: BadBoxes = "error",
) -> None:
    """Find every fault of a data set before training: annotations, sizes, and each image decoded.

    Exit code 0 when there are none, 2 when there are; nothing is changed.

    Example: [cyan]ohem check VOCdevkit/VOC2007@trainval[/cyan]
    """
    from ohem.data.check import load_checked, summary
    from ohem.data.sources import load_dataset

    with Console() as console:
        dataset = load_checked(
            lambda: load_dataset(data, _names(classes), other_classes=other_classes, bad_boxes=bad_boxes),
            decode=True,
            progress=lambda done, total: console.progress("decoding images", done, total),
        )
    found = summary(dataset)
    console.table(
        dataset.name,
        ("", ""),
        [
            ("images", found.images),
            ("images without boxes", found.images_without_boxes),
            ("boxes", found.boxes),
            ("difficult, crowd", f"{found.difficult}, {found.crowd}"),
            ("width, height", f"{found.widths[0]}-{found.widths[1]}, {found.heights[0]}-{found.heights[1]} px"),
            ("sides of boxes", f"{found.box_sides[0]:.0f}-{found.box_sides[1]:.0f} px"),
            *((f"class {name}", count) for name, count in found.boxes_per_class.items()),
        ],
    )
    for note in found.notes:
        console.say(note)
    console.say("no faults")


@app.command()
def propose(
    data: DataArgument,
    mode: Annotated[Literal["fast", "quality"], typer.Option(help="Of selective search.")] = "fast",
    proposals: ProposalFiles = None,
    out: Annotated[Path | None, typer.Option(help="The cache file; default: in the user's cache folder.")] = None,
    workers: Workers = 2,
) -> None:
    """Make selective-search proposals of a data set, or read published ones, and print their recall.

    Can be stopped and started again: finished images are kept, images that changed are made anew.

    Examples: [cyan]ohem propose VOC2007@trainval[/cyan], or to judge published ones:
    [cyan]ohem propose VOC2007@test --proposals voc_2007_test.mat[/cyan]
    """
    from ohem.models.spec import ProposalSpec
    from ohem.proposals.recall import proposal_recall
    from ohem.recipes.recipe import DataSpec
    from ohem.workflow import open_dataset, open_proposals

    with Console() as console:
        dataset = open_dataset(data, DataSpec(bad_boxes="drop"), console)
        found = open_proposals(dataset, proposals or [], ProposalSpec(mode=mode), workers, console, cache=out)
        heading, *rows = proposal_recall(dataset.records, found).rows()
    console.table(f"recall of {dataset.name}", heading, rows)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one, complete.")] = None) -> None:
    """List the built-in recipes, or print one with every field, to be changed and saved as your own.

    Example: [cyan]ohem recipes lite0 > mine.yaml[/cyan]
    """
    from ohem.recipes.recipe import built_in_recipes, dump_recipe, load_recipe

    typer.echo("\n".join(built_in_recipes()) if name is None else dump_recipe(load_recipe(name)).rstrip())


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="A built-in recipe (ohem recipes) or a YAML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="sampler=random, optimizer.lr=0.01, iterations=500"),
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help=DATA_HELP)] = None,
    val: Annotated[list[str] | None, typer.Option(help="Measure on this during training.")] = None,
    proposals: ProposalFiles = None,
    val_proposals: Annotated[list[str] | None, typer.Option(help="Proposal files of the validation data.")] = None,
    run: Annotated[
        Path | None, typer.Option("--run", "--folder", help="The run's new folder; default runs/RECIPE.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run from its last checkpoint.")] = None,
    device: Device = None,
    workers: Workers = 1,
    tensorboard: Annotated[bool, typer.Option(help="Log to TensorBoard too (ohem\\[tensorboard]).")] = False,
) -> None:
    """Train a detector. Ctrl-C saves a checkpoint; --resume goes on from it to bit-identical weights.

    Where data moved since a run began, --resume takes --data, --val and proposal files too; they must hold the same.

    Examples: [cyan]ohem train lite0 --data MY_DATA@train --val MY_DATA@val[/cyan],
    [cyan]ohem train fasterrcnn_lite0 --data MY_DATA@train[/cyan] (no proposals needed),
    [cyan]ohem train lite0 sampler=random optimizer.lr=0.0005 --data MY_DATA@train[/cyan],
    [cyan]ohem train --resume runs/lite0[/cyan]
    """
    if resume is None and (recipe is None or not data):
        raise OhemError("train: found no recipe or no --data; allowed: train RECIPE --data DATA, or train --resume RUN")
    if resume is not None and (recipe or overrides or run):
        raise OhemError(
            "train: found --resume with other settings; allowed: --resume RUN, and --data and so on where data moved"
        )
    from ohem import workflow
    from ohem.recipes.recipe import load_recipe
    from ohem.training.run import Sources

    given = Sources(*(tuple(names or ()) for names in (data, val, proposals, val_proposals)))
    with Console() as console:
        if resume is not None:
            folder, finished = (
                resume,
                workflow.resume(
                    resume, moved=given, device=device, workers=workers, tensorboard=tensorboard, reporter=console
                ),
            )
        else:
            folder, finished = workflow.train(
                load_recipe(str(recipe), overrides or []),
                given,
                folder=run,
                name=Path(str(recipe)).stem,
                device=device,
                workers=workers,
                reporter=console,
                tensorboard=tensorboard,
            )
    if not finished:
        console.say(f"stopped and saved; go on with: ohem train --resume {folder}")
        raise typer.Exit(130)
    console.say(f"done: {folder}; next: ohem evaluate {folder} --data DATA, ohem detect {folder} IMAGES")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    data: Data,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="detection.refine=0.05, image.test_scales=\\[480,576]"),
    ] = None,
    proposals: ProposalFiles = None,
    out: Annotated[Path | None, typer.Option(help="New folder for metrics and detections; default in the run.")] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="best: on the validation split, if any.")] = "best",
    other_classes: OtherClasses = "drop",
    bad_boxes: BadBoxes = "error",
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Average precision on a data set: VOC's (11-point and area) and COCO's twelve numbers.

    Detections are saved in COCO's results format and, of VOC data, as comp4_det_SPLIT_CLASS.txt.

    Examples: [cyan]ohem evaluate runs/lite0 --data MY_DATA@test[/cyan],
    [cyan]ohem evaluate runs/lite0 detection.refine=0.05 --data MY_DATA@test[/cyan]
    """
    from ohem import workflow

    with Console() as console:
        result = workflow.evaluate(
            run,
            data,
            proposals=proposals or [],
            out=out,
            weights=weights,
            overrides=overrides or [],
            other_classes=other_classes,
            bad_boxes=bad_boxes,
            device=device,
            workers=workers,
            reporter=console,
        )
    percent = [
        (name, f"{100 * a:.1f}", f"{100 * b:.1f}", count)
        for (name, a), (_, b), count in zip(
            result.voc07.rows(),
            result.voc12.rows(),
            [*result.voc07.num_gt.tolist(), result.voc07.num_gt.sum()],
            strict=True,
        )
    ]
    console.table("VOC AP at IoU 0.5, %", ("class", "11-point", "area", "objects"), percent)
    console.table("COCO, %", ("", ""), [(name, f"{100 * value:.1f}") for name, value in result.coco.numbers.items()])
    console.say(f"metrics and detections are in {result.folder}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs; the others are compared with the first.")],
    data: Annotated[
        list[str] | None, typer.Option("--data", help="What they were evaluated on, where they do not say.")
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

    with Console() as console:
        page = make_report(
            runs, data=data or [], out=out, most_images=images, device=device, workers=workers, reporter=console
        )
    console.say(f"page: {page}")


@app.command("inspect")
def inspect_data(
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

    with Console() as console:
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
    rows = [(kind, sum(one.kind == kind for one in top)) for kind in KINDS]
    console.table("suspects", ("", f"of the first {len(top)}"), rows)
    console.say(f"suspects.html, suspects.csv, suspects.json (COCO) are in {found.folder}")


@app.command()
def submit(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    server: Annotated[Literal["voc12", "coco"], typer.Argument(help="Whose classes and format.")],
    data: Annotated[
        str, typer.Option(help="The test set: VOC2012@test, or coco@test-dev2015. Annotations: none needed.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="detection.refine=0.05, image.test_scales=\\[480,576]"),
    ] = None,
    proposals: ProposalFiles = None,
    out: Annotated[Path | None, typer.Option(help="New folder; default in the run.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the method, at the server; default: the run's.")] = None,
    testset: Annotated[str | None, typer.Option(help="COCO's name of the test set, if not as in the file's.")] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="best: on the validation split, if any.")] = "best",
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Detect in a test set whose annotations are secret, and pack the detections as its server wants them.

    Examples: [cyan]ohem submit runs/vgg16 voc12 --data VOCdevkit/VOC2012@test[/cyan],
    [cyan]ohem submit runs/vgg16 coco --data coco@test-dev2015 --testset test-dev2017[/cyan]
    """
    from ohem import submission

    with Console() as console:
        made = submission.submit(
            run,
            server,
            data,
            proposals=proposals or [],
            out=out,
            name=name,
            test_set=testset,
            weights=weights,
            overrides=overrides or [],
            device=device,
            workers=workers,
            reporter=console,
        )
    console.say(f"{made.detections} detections in {made.images} images of {made.test_set}; to be sent: {made.archive}")


@app.command()
def detect(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders, or globs in quotes.")],
    out: Annotated[Path | None, typer.Option(help="New folder for pictures and detections.json.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Show detections with at least this score.")] = 0.5,
    weights: Annotated[Literal["best", "last"], typer.Option(help="best: on the validation split, if any.")] = "best",
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Detect objects in pictures: boxes drawn on copies of them, and a JSON.

    Example: [cyan]ohem detect runs/lite0 photos/ --out found[/cyan]
    """
    from ohem.pictures import detect_pictures

    with Console() as console:
        result = detect_pictures(
            run, images, out=out, threshold=threshold, weights=weights, device=device, workers=workers, reporter=console
        )
    found = sum(len(one.labels) for one in result.detections.values())
    console.say(f"{found} objects in {len(result.detections)} images: pictures and detections.json in {result.folder}")


@app.command()
def harvest(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    out: Annotated[Path, typer.Argument(help="The new proposal file, .json.")],
    data: Data,
    proposals: ProposalFiles = None,
    max_background: Annotated[
        float, typer.Option(min=0, max=1, help="A background RoI with a lower probability of background is kept.")
    ] = 0.5,
    workers: Workers = 1,
) -> None:
    """Bootstrapping, as before OHEM: keep the foreground and false positives of a frozen detector, to train on those.

    Example: [cyan]ohem harvest runs/round-1 hard.json --data MY_DATA@train[/cyan], and then
    [cyan]ohem train lite0 sampler=random sampler.bg_lo=0 init_from=runs/round-1 --data MY_DATA@train
    --proposals hard.json[/cyan]
    """
    from ohem.bootstrapping import harvest as harvest_working_set

    with Console() as console:
        harvest_working_set(
            run,
            data,
            out,
            proposals=proposals or [],
            max_background=max_background,
            workers=workers,
            reporter=console,
        )


@app.command()
def reproduce(
    target: Annotated[str, typer.Argument(help="table1 to table6, figure3, claims, rivals, or joins.")],
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
    recipe: Annotated[str | None, typer.Option(help="mini: what all trainings share; default: mini.")] = None,
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
    from ohem.studies.runner import duration
    from ohem.studies.workshop import Workshop

    sharing = study.Sharing.parse(shard)
    with Console() as console:
        opened = study.open_study(
            target, scale, out, data=data, test=test, coco=coco, classes=_names(classes) or (), recipe=recipe
        )
        workshop = Workshop(opened, out, console, device, workers)
        for folder in collect or []:
            console.say(f"{folder}: {workshop.results.collect(folder)} results taken over")
        jobs, progress = study.plan(workshop, target, seeds, sharing)
        left = "" if progress.seconds is None else f", about {duration(progress.seconds)} of one process"
        console.say(f"{target}: {progress.done} of {len(jobs)} jobs done, {len(progress.left)} left{left}")
        if plan:
            console.table("left to run", ("", ""), [(job.name, "") for job in progress.left])
            return
        try:
            report, page = study.reproduce(workshop, target, seeds, sharing)
        except KeyboardInterrupt:
            console.say(f"stopped; the same command goes on from {out}")
            raise typer.Exit(130) from None
    _print_report(report, console)
    console.say(f"page: {page}, numbers: {page.with_suffix('.json')}")


@app.command()
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Evaluated runs; the first one's arm is the base.")
    ],
) -> None:
    """Compare runs that differ in more than their seed, paired by seed: mean differences with 95 % intervals.

    Example: [cyan]ohem compare runs/random-0 runs/random-1 runs/hard-0 runs/hard-1[/cyan]
    """
    from ohem.studies.compare import METRICS
    from ohem.studies.compare import compare as compare_runs

    found, console = compare_runs(runs), Console()
    for warning in found.warnings:
        console.say(f"warning: {warning}")
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


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="FILE.caffemodel", help="VGG16's or VGG_CNN_M_1024's weights.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The new file.")],
    classes: Annotated[
        str | None, typer.Option(help="A detector's class names in order, with commas between; default: VOC's twenty.")
    ] = None,
) -> None:
    """Turn Caffe's weights into a file of ours: an ImageNet backbone, or a whole Fast R-CNN detector.

    Examples: [cyan]ohem convert VGG_CNN_M_1024.v2.caffemodel vgg_cnn_m_1024.safetensors[/cyan], and then
    [cyan]ohem train vgg_cnn_m_1024 detector.backbone.weights=vgg_cnn_m_1024.safetensors --data VOC2007@trainval[/cyan]
    """
    from ohem.conversion import convert as convert_file

    console = Console()
    found = convert_file(source, out, _names(classes))
    rows = [(name, " x ".join(map(str, shape)), math.prod(shape) + shape[0]) for name, shape in found.shapes.items()]
    console.table(found.network, ("layer", "weights", "parameters"), rows)
    console.say(f"{len(rows)} layers, {sum(count for _, _, count in rows):,} parameters, biases included")
    if found.left_out:
        every = len(rows) + len(found.left_out)
        console.say(f"{len(found.left_out)} of {every} layers with weights left out: {', '.join(found.left_out)}")
    if found.kind == "detector":
        console.say(f"{len(found.classes)} classes: {', '.join(found.classes)}")
        console.say(f"detector in {out}; next: ohem evaluate {out} --data DATA, ohem detect {out} IMAGES")
    else:
        console.say(f"backbone in {out}; next: ohem train {found.network} detector.backbone.weights={out} --data DATA")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, runs and pictures.")] = Path("demo"),
    iterations: Annotated[int, typer.Option(min=1, help="Steps of each of the two trainings.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train the heuristic sampler and OHEM side by side on built-in data, and show what each learned.

    Example: [cyan]ohem demo[/cyan]
    """
    from ohem.comparison import HEADER
    from ohem.demo import run_demo

    with Console() as console:
        arms = run_demo(out, iterations=iterations, seed=seed, reporter=console)
    console.table("\nthe same start, the same images, another sampler", HEADER, [arm.row() for arm in arms])
    console.say(f"curves.png, precision_recall.png, detections.png, hardest.png in {out}")


def _pass_over_killed_workers(found: "sys.UnraisableHookArgs") -> None:
    """torch raises its error a second time while the other workers are put away; once is told."""
    if "DataLoader worker" not in str(found.exc_value):
        sys.__unraisablehook__(found)


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


def _print_report(report: "Report", console: Console) -> None:
    from ohem.studies.report import COST_HEADER, TEXT_HEADER, text_rows

    for table in report.tables:
        console.table(f"{table.table.name}: {table.table.title}", TEXT_HEADER, text_rows(table))
    if report.costs:
        console.table("table2: cost of a training step", COST_HEADER, report.costs)
    for each in report.judgements:
        console.say(f"{each.claim.id} {each.verdict}: {each.claim.statement}")
        for label, value in each.evidence.measured:
            console.say(f"    {label}: {value}")
    for name, why in report.not_run:
        console.say(f"not run: {name}: {why}")


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",")) if text else None


if __name__ == "__main__":
    main()
