"""A trained detector as a folder for others: its weights, and a card that says what they are."""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ohem.files import atomic_writer, require_free, write_atomically
from ohem.models.spec import TorchvisionSpec
from ohem.models.weights import load_detector
from ohem.recipes.recipe import dump_recipe
from ohem.training.run import Run, Weights, find_weights

CARD = """\
---
library_name: ohem
pipeline_tag: object-detection
tags: [object-detection, online-hard-example-mining]
---
# {title}

{what} for {count} classes, trained with ohem {ohem}. `weights.safetensors` holds the weights, the classes, how images are prepared
and how detections are made; `{file}` of the run, {chosen}.

**Classes**, label i is the i-th: {classes}.

## Use

```python
import ohem

detector, spec, classes = ohem.load_detector("weights.safetensors")
```

`ohem detect weights.safetensors PICTURE...` draws what it finds; `ohem evaluate weights.safetensors --data DATA` measures it;
`ohem train RECIPE init_from=weights.safetensors` goes on from it.

## Training

| | |
|---|---|
| Data | {data}: {images} images, fingerprint `{fingerprint}` |
| Iterations | {iterations} of {planned} |
| Seed | {seed} |
| Sampler | `{sampler}` |
| Backbone's first weights | `{pretrained}` |
| Machine | {machine} |

{accuracy}

The whole recipe:

```yaml
{recipe}
```

## What this card does not know

Where the pictures came from, what they leave out, and under which licence they and the first weights stand: write it here before you give
the folder away.
"""


def export_weights(source: Path | str, folder: Path | str, *, weights: Weights = "best") -> Path:
    """Copy a run's weights into a new folder, with a model card, ``README.md``, beside them.

    The card is in the form that model hubs read: what the detector is, how it is used, what it was trained on, and its
    accuracy on the run's validation split if it had one. Paths of the machine are not in it.

    Args:
        source: a run's folder.
        folder: a new or empty one.
        weights: which of the run's weights.

    Returns:
        The card.

    Raises:
        OhemError: there is something in the folder, the source is no run, or it has no weights.
    """
    source, folder = Path(source), Path(folder)
    require_free(folder)
    run = Run.open(source)
    file = find_weights(source, weights)
    card = _card(run, file, folder.name)
    with file.open("rb") as read, atomic_writer(folder / "weights.safetensors") as write:
        shutil.copyfileobj(read, write)
    write_atomically(folder / "README.md", card)
    return folder / "README.md"


def _card(run: Run, file: Path, title: str) -> str:
    detector, spec, classes = load_detector(file)
    recipe = run.recipe()
    log = run.log()
    first = (
        recipe.detector.weights if isinstance(recipe.detector, TorchvisionSpec) else recipe.detector.backbone.weights
    )
    without_paths = {"detector": spec.without_source(), "init_from": recipe.init_from and Path(recipe.init_from.name)}
    validations = [record for record in log if record.get("kind") == "validation"]
    return CARD.format(
        title=title,
        what=f"torchvision's {spec.kind}"
        if isinstance(spec, TorchvisionSpec)
        else f"{type(detector).__name__} on {spec.backbone.name}",
        count=len(classes),
        ohem=version("ohem"),
        file=file.name,
        chosen="the best on its validation split" if file == run.best_file else "after the last step",
        classes=", ".join(classes),
        data=run.told("data", "name"),
        images=run.told("data", "images"),
        fingerprint=run.data_fingerprint()[:16],
        iterations=max((record["iteration"] for record in log), default=0),
        planned=recipe.iterations,
        seed=recipe.seed,
        sampler=str(recipe.sampler),
        pretrained=Path(first).name,
        machine=_machine(run),
        accuracy=_accuracy(validations, recipe.evaluation.metric, best=file == run.best_file),
        recipe=dump_recipe(recipe.model_copy(update=without_paths)).strip(),
    )


def _machine(run: Run) -> str:
    cuda, processor = run.told("machine", "cuda"), run.told("machine", "processor")
    return f"{cuda or processor or 'not known'}, torch {run.told('machine', 'packages', 'torch') or 'not known'}"


def _accuracy(validations: Sequence[dict[str, Any]], metric: str, *, best: bool) -> str:
    """What the validation split said of the weights that are given: its best, or those after the last step."""
    validations = [record for record in validations if record.get(metric) is not None]
    if not validations:
        return "It was trained without a validation split with objects, so that nothing is known here of its accuracy."
    looked = max(validations, key=lambda record: record[metric]) if best else validations[-1]
    measured = f"On its validation split: {metric} {looked[metric]:.4f} at iteration {looked['iteration']}"
    if not best:
        return f"{measured}."
    return f"{measured}, the best of {len(validations)} looks. That split chose the weights; another would say less."
