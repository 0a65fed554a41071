"""The options that several commands share."""

from typing import Annotated, Literal

import typer

from ohem.cli.completion import use_fields

DATA_HELP = "A VOC, COCO or YOLO folder, or COCO JSON file, and after it, if anything, @SPLIT. Repeat to join several."
PROPOSALS_HELP = "Proposal file (.mat, .json, .sqlite); repeat for several. Without: selective search, made and kept."

Data = Annotated[list[str], typer.Option("--data", help=DATA_HELP)]
DataArgument = Annotated[list[str], typer.Argument(metavar="DATA...", help=DATA_HELP)]
ProposalFiles = Annotated[list[str] | None, typer.Option("--proposals", help=PROPOSALS_HELP)]
UseFields = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FIELD=VALUE]...",
        help="detection.refine=0.05, image.test_scales=\\[480,576]",
        autocompletion=use_fields,
    ),
]
WhichWeights = Annotated[Literal["best", "last"], typer.Option(help="best: on the validation split, if any.")]
Classes = Annotated[str | None, typer.Option(help="Class names in order, with commas between; default: the data's.")]
OtherClasses = Annotated[
    Literal["error", "drop"], typer.Option(help="Objects of classes not in the list: refuse, or leave out and count.")
]
BadBoxes = Annotated[
    Literal["error", "drop"], typer.Option(help="Reversed, empty or outside boxes: refuse, or leave out and count.")
]
Workers = Annotated[int, typer.Option(min=0, help="Processes that read images. Does not change results.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: cuda where there is one.")]


def class_names(text: str | None) -> tuple[str, ...] | None:
    """The names of ``a, b, c``; None where none are given. An empty text is a name that is refused."""
    return None if text is None else tuple(name.strip() for name in text.split(","))
