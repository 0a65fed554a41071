"""Commands on data and proposals, before training. Each says what it needs and calls one function."""

import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Literal

import typer

from ohem.cli.app import command
from ohem.cli.completion import published_names
from ohem.cli.options import (
    BadBoxes,
    Classes,
    Data,
    DataArgument,
    Device,
    OtherClasses,
    ProposalFiles,
    Workers,
    class_names,
)
from ohem.console import Console
from ohem.errors import OhemError
from ohem.files import require_suffix


@command("data")
def get_data(
    console: Console,
    name: Annotated[
        str | None,
        typer.Argument(help="One of the list that [cyan]ohem data[/cyan] prints.", autocompletion=published_names),
    ] = None,
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
        fields = ("name", "what", "licence", "size", "hosts")
        console.answer([{field: getattr(one, field) for field in fields} for one in PUBLISHED])
        for one in PUBLISHED:
            console.result(f"{one.name:<18}{in_words(one.size):>8}  {one.what}")
            console.result(f"{'':<28}{', '.join(one.hosts)}; {one.licence}")
        return
    published = find_published(name)
    if folder is None:
        raise OhemError(f"data: found no folder; allowed: ohem data {name} DIR")
    arguments = get(published, folder, say=console.say, progress=console.progress)
    console.answer({"name": name, "folder": folder, "use": arguments})
    console.result(f"{published.what}; to use:")
    for argument in arguments:
        console.result(f"  {argument}")


@command()
def check(
    console: Console,
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

    dataset = load_checked(
        lambda: load_dataset(data, class_names(classes), other_classes=other_classes, bad_boxes=bad_boxes),
        decode=True,
        progress=partial(console.progress, "decoding images"),
    )
    found = summary(dataset)
    console.answer({"name": dataset.name, **asdict(found)})
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
        console.warn(note)
    if not dataset.has_objects:
        console.warn("found no object that is neither difficult nor crowd: nothing to train on, and nothing to find")
    console.result("no faults")


@command()
def propose(
    console: Console,
    data: DataArgument,
    mode: Annotated[
        Literal["fast", "quality"] | None, typer.Option(help="Of selective search.", show_default="fast")
    ] = None,
    proposals: ProposalFiles = None,
    out: Annotated[
        Path | None, typer.Option(help="The cache file, .sqlite; default: in the user's cache folder.")
    ] = None,
    workers: Workers = 2,
) -> None:
    """Make selective-search proposals of a data set, or read published ones, and print their recall.

    Can be stopped and started again: finished images are kept, images that changed are made anew.

    Examples: [cyan]ohem propose VOC2007@trainval[/cyan], or to judge published ones:
    [cyan]ohem propose VOC2007@test --proposals voc_2007_test.mat[/cyan]
    """
    from ohem.models.spec import ProposalSpec
    from ohem.opening import open_dataset, open_proposals
    from ohem.proposals.cache import ProposalCache
    from ohem.proposals.recall import proposal_recall
    from ohem.recipes.recipe import DataSpec

    if proposals and (out or mode):
        option = "--out" if out else "--mode"
        raise OhemError(
            f"ohem propose: found --proposals and {option}; allowed: one of them, since nothing is made of files"
        )
    if out:
        require_suffix(out, ".sqlite")
    dataset = open_dataset(data, DataSpec(bad_boxes="drop"), console)
    found = open_proposals(dataset, proposals or [], ProposalSpec(mode=mode or "fast"), workers, console, cache=out)
    recall = proposal_recall(dataset.records, found)
    file = found.path if isinstance(found, ProposalCache) else None
    console.answer({"name": dataset.name, "images": len(dataset), "file": file, **recall.to_json()})
    heading, *rows = recall.rows()
    console.table(f"recall of {dataset.name}", heading, rows)


@command()
def harvest(
    console: Console,
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    out: Annotated[Path, typer.Argument(help="The new proposal file, .json.")],
    data: Data,
    proposals: ProposalFiles = None,
    max_background: Annotated[
        float, typer.Option(min=0, max=1, help="A background RoI with a lower probability of background is kept.")
    ] = 0.5,
    bad_boxes: BadBoxes = "error",
    device: Device = None,
    workers: Workers = 1,
) -> None:
    """Bootstrapping, as before OHEM: keep the foreground and false positives of a frozen detector, to train on those.

    Example: [cyan]ohem harvest runs/round-1 hard.json --data MY_DATA@train[/cyan], and then
    [cyan]ohem train lite0 sampler=random sampler.bg_lo=0 init_from=runs/round-1 --data MY_DATA@train
    --proposals hard.json[/cyan]
    """
    from ohem.bootstrapping import harvest as harvest_working_set
    from ohem.recipes.recipe import DataSpec

    kept = harvest_working_set(
        run,
        data,
        out,
        proposals=proposals or [],
        max_background=max_background,
        data_spec=DataSpec(other_classes="drop", bad_boxes=bad_boxes),
        device=device,
        workers=workers,
        reporter=console,
    )
    count = sum(map(len, kept.values()))
    console.answer({"file": out, "images": len(kept), "proposals": count})
    console.result(f"working set: {out}")


@command()
def convert(
    console: Console,
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

    found = convert_file(source, out, class_names(classes), progress=console.progress)
    console.answer({"file": out, **asdict(found)})
    rows = [(name, " x ".join(map(str, shape)), math.prod(shape) + shape[0]) for name, shape in found.shapes.items()]
    console.table(found.network, ("layer", "weights", "parameters"), rows)
    console.result(f"{len(rows)} layers, {sum(count for _, _, count in rows):,} parameters, biases included")
    if found.left_out:
        every = len(rows) + len(found.left_out)
        console.warn(f"{len(found.left_out)} of {every} layers with weights left out: {', '.join(found.left_out)}")
    if found.kind == "detector":
        console.result(f"{len(found.classes)} classes: {', '.join(found.classes)}")
        console.result(f"detector in {out}")
        file = quote(str(out))
        console.say(f"next: ohem evaluate {file} --data DATA, ohem detect {file} IMAGES")
    else:
        console.result(f"backbone in {out}")
        weights = quote(f"detector.backbone.weights={out}")
        console.say(f"next: ohem train {found.network} {weights} --data DATA")
