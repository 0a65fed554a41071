"""Commands that train. Each says what it needs and calls one function."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from ohem.cli.app import command
from ohem.cli.completion import recipe_fields, recipe_names
from ohem.cli.options import DATA_HELP, Device, ProposalFiles, Workers
from ohem.console import Console
from ohem.errors import OhemError


@command()
def recipes(
    console: Console,
    name: Annotated[str | None, typer.Argument(help="Print this one, complete.", autocompletion=recipe_names)] = None,
) -> None:
    """List the built-in recipes, or print one with every field, to be changed and saved as your own.

    Example: [cyan]ohem recipes lite0 > mine.yaml[/cyan]
    """
    from ohem.recipes.files import built_in_recipes
    from ohem.recipes.recipe import dump_recipe, load_recipe

    recipe = None if name is None else load_recipe(name)
    console.answer(recipe.model_dump(mode="json") if recipe else built_in_recipes())
    for line in dump_recipe(recipe).splitlines() if recipe else built_in_recipes():
        console.result(line)


@command()
def train(
    console: Console,
    recipe: Annotated[
        str | None, typer.Argument(help="A built-in recipe (ohem recipes) or a YAML file.", autocompletion=recipe_names)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="sampler=random, optimizer.lr=0.01, iterations=500",
            autocompletion=recipe_fields,
        ),
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
    from ohem.training.processes import is_first
    from ohem.training.run import Run, Sources

    given = Sources(*(tuple(names or ()) for names in (data, val, proposals, val_proposals)))
    if resume is not None:
        folder = resume
        finished = workflow.resume(
            resume, moved=given, device=device, workers=workers, tensorboard=tensorboard, reporter=console
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
    if not is_first():
        raise typer.Exit(0 if finished else 130)
    measured = [record for record in Run(folder).log() if record["kind"] == "validation"]
    console.answer({"folder": folder, "finished": finished, "validation": measured[-1] if measured else None})
    name = quote(str(folder))
    if not finished:
        console.result(f"stopped and saved; go on with: ohem train --resume {name}")
        raise typer.Exit(130)
    console.result(f"done: {folder}")
    console.say(f"next: ohem evaluate {name} --data DATA, ohem detect {name} IMAGES")


@command()
def demo(
    console: Console,
    out: Annotated[Path, typer.Option(help="Folder for data, runs and pictures.")] = Path("demo"),
    iterations: Annotated[int, typer.Option(min=1, help="Steps of each of the two trainings.")] = 300,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train the heuristic sampler and OHEM side by side on built-in data, and show what each learned.

    Example: [cyan]ohem demo[/cyan]
    """
    from ohem.comparison import HEADER
    from ohem.demo import run_demo

    arms = run_demo(out, iterations=iterations, seed=seed, reporter=console, quiet=console.quiet)
    measured = [
        {"name": arm.name, "voc07": arm.voc.to_json(), "loss_train": arm.loss_train, "loss_test": arm.loss_test}
        for arm in arms
    ]
    console.answer({"folder": out, "arms": measured})
    console.table("\nthe same start, the same images, another sampler", HEADER, [arm.row() for arm in arms])
    console.result(f"curves.png, precision_recall.png, detections.png, hardest.png in {out}")
