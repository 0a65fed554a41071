"""The command that hands a detector on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ohem.cli.app import command
from ohem.cli.options import ProposalFiles, WhichWeights
from ohem.console import Console
from ohem.errors import OhemError
from ohem.files import require_new_file

if TYPE_CHECKING:
    from ohem.data.dataset import DetectionDataset, Proposals
    from ohem.onnx_export import Agreement


@command()
def export(
    console: Console,
    run: Annotated[Path, typer.Argument(help="A run's folder, or a weights file.")],
    onnx: Annotated[Path | None, typer.Option(help="A new ONNX file.")] = None,
    safetensors: Annotated[Path | None, typer.Option(help="A new or empty folder: weights and a model card.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Compare with PyTorch on this data set's first images.")
    ] = None,
    proposals: ProposalFiles = None,
    check: Annotated[int, typer.Option(min=1, help="How many of them.")] = 50,
    weights: WhichWeights = "best",
) -> None:
    """Write a trained detector as ONNX, compared with PyTorch, or as weights with a model card.

    Example: [cyan]ohem export runs/lite0 --onnx lite0.onnx --data MY_DATA@val[/cyan]
    """
    if onnx is None and safetensors is None:
        raise OhemError("ohem export: found no form; allowed: --onnx FILE, --safetensors FOLDER, or both")
    if proposals and not data:
        raise OhemError(
            "ohem export: found --proposals without --data; allowed: both, to compare with PyTorch, or neither"
        )
    if data and onnx is None:
        raise OhemError("ohem export: found --data without --onnx; allowed: both, to compare with PyTorch, or neither")
    card = found = opened = None
    if onnx is not None:  # before anything is written
        require_new_file(onnx)
        if data:
            from ohem.onnx_export import open_images

            opened = open_images(run, data, proposals or [], check, weights, console)
    if safetensors is not None:
        from ohem.model_card import export_weights

        card = export_weights(run, safetensors, weights=weights)
        console.result(f"{card}: the card; weights.safetensors is beside it")
    if onnx is not None:
        found = _export_onnx(console, run, onnx, opened, weights)
    console.answer({"onnx": onnx, "check": found, "card": card})


def _export_onnx(
    console: Console,
    run: Path,
    onnx: Path,
    opened: "tuple[DetectionDataset, Proposals] | None",
    weights: Literal["best", "last"],
) -> "Agreement | None":
    from ohem.onnx_export import BOX_BAR, SCORE_BAR, compare_onnx, export_onnx

    path = export_onnx(run, onnx, weights=weights)
    console.result(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if opened is None:
        return None
    found = compare_onnx(run, path, *opened, weights, console)
    differences = f"{found.unmatched} in one of the two alone, boxes {found.box:.2g} px apart, scores {found.score:.2g}"
    if found.at_limit:
        differences += f" (and {found.at_limit} with the score at which the limit of detections cuts)"
    if not found.equal:
        raise OhemError(f"{path}: found {differences}; allowed: 0, {BOX_BAR:g} px and {SCORE_BAR:g}")
    console.result(f"{found.images} images, {found.detections} detections: {differences}")
    return found
