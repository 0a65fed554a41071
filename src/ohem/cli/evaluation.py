"""Commands that judge a trained detector, or detect with it. Each says what it needs and calls one function."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ohem.cli.app import command
from ohem.cli.options import BadBoxes, Data, Device, OtherClasses, ProposalFiles, UseFields, WhichWeights, Workers
from ohem.console import Console


@command()
def evaluate(
    console: Console,
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    data: Data,
    overrides: UseFields = None,
    proposals: ProposalFiles = None,
    out: Annotated[Path | None, typer.Option(help="New folder for metrics and detections; default in the run.")] = None,
    weights: WhichWeights = "best",
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
    from ohem.judging import evaluate as judge

    result = judge(
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
    console.answer({"folder": result.folder, **result.metrics})
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
    console.result(f"metrics and detections are in {result.folder}")


@command()
def submit(
    console: Console,
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    server: Annotated[Literal["voc12", "coco"], typer.Argument(help="Whose classes and format.")],
    data: Annotated[
        str, typer.Option(help="The test set: VOC2012@test, or coco@test-dev2015. Annotations: none needed.")
    ],
    overrides: UseFields = None,
    proposals: ProposalFiles = None,
    out: Annotated[Path | None, typer.Option(help="New folder; default in the run.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the method, at the server; default: the run's.")] = None,
    testset: Annotated[str | None, typer.Option(help="COCO's name of the test set, if not as in the file's.")] = None,
    weights: WhichWeights = "best",
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Detect in a test set whose annotations are secret, and pack the detections as its server wants them.

    Examples: [cyan]ohem submit runs/vgg16 voc12 --data VOCdevkit/VOC2012@test[/cyan],
    [cyan]ohem submit runs/vgg16 coco --data coco@test-dev2015 --testset test-dev2017[/cyan]
    """
    from ohem import submission

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
    console.answer(made)
    console.result(
        f"{made.detections} detections in {made.images} images of {made.test_set}; to be sent: {made.archive}"
    )


@command()
def detect(
    console: Console,
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGES...", help="Files, folders, or globs in quotes.")],
    out: Annotated[Path | None, typer.Option(help="New folder for pictures and detections.json.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Show detections with at least this score.")] = 0.5,
    weights: WhichWeights = "best",
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Detect objects in pictures: boxes drawn on copies of them, and a JSON.

    Example: [cyan]ohem detect runs/lite0 photos/ --out found[/cyan]
    """
    from ohem.pictures import detect_pictures

    result = detect_pictures(
        run, images, out=out, threshold=threshold, weights=weights, device=device, workers=workers, reporter=console
    )
    console.answer({"folder": result.folder, **result.listing})
    found = sum(len(one.labels) for one in result.detections.values())
    console.result(
        f"{found} objects in {len(result.detections)} images: pictures and detections.json in {result.folder}"
    )
