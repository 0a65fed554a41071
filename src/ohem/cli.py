"""The command line. Each command says what it needs and calls one function; torch is imported only by those that run."""

import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ohem.console import Console
from ohem.errors import DataError, OhemError

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
  [cyan]ohem check[/cyan] MY_DATA@train                         find faults of a data set
  [cyan]ohem train[/cyan] lite0 --data MY_DATA@train            proposals, training
  [cyan]ohem evaluate[/cyan] runs/lite0 --data MY_DATA@test     average precision
  [cyan]ohem detect[/cyan] runs/lite0 photos/                   pictures with boxes drawn

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
    run: Annotated[Path | None, typer.Option(help="The run's new folder; default runs/RECIPE.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run from its last checkpoint.")] = None,
    device: Device = None,
    workers: Workers = 1,
    tensorboard: Annotated[bool, typer.Option(help="Log to TensorBoard too (ohem\\[tensorboard]).")] = False,
) -> None:
    """Train a detector. Ctrl-C saves a checkpoint; --resume goes on from it to bit-identical weights.

    Examples: [cyan]ohem train lite0 --data MY_DATA@train --val MY_DATA@val[/cyan],
    [cyan]ohem train lite0 sampler=random optimizer.lr=0.0005 --data MY_DATA@train[/cyan],
    [cyan]ohem train --resume runs/lite0[/cyan]
    """
    if resume is None and (recipe is None or not data):
        raise OhemError("train: found no recipe or no --data; allowed: train RECIPE --data DATA, or train --resume RUN")
    if resume is not None and (recipe or overrides or data or val or run or proposals or val_proposals):
        raise OhemError("train: found --resume with other settings; allowed: --resume RUN alone, its recipe decides")
    from ohem import workflow
    from ohem.recipes.recipe import load_recipe
    from ohem.training.run import Sources

    with Console() as console:
        if resume is not None:
            finished, folder = (
                workflow.resume(resume, device=device, workers=workers, tensorboard=tensorboard, reporter=console),
                resume,
            )
        else:
            folder, finished = workflow.train(
                load_recipe(str(recipe), overrides or []),
                Sources(tuple(data or ()), tuple(val or ()), tuple(proposals or ()), tuple(val_proposals or ())),
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


def main() -> None:
    """Entry point: errors that the user can mend are one line each on stderr, and exit code 2."""
    try:
        app()
    except OhemError as error:
        lines = [str(error), *getattr(error, "__notes__", [])]
        count = len(error.faults) if isinstance(error, DataError) else 0
        print("\n".join(lines), file=sys.stderr)
        if count > 1:
            print(f"{count} faults", file=sys.stderr)
        sys.exit(2)


def _names(text: str | None) -> tuple[str, ...] | None:
    return tuple(name.strip() for name in text.split(",")) if text else None


if __name__ == "__main__":
    main()
