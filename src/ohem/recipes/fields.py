"""Every field of a recipe and its values, as a shell completes them.

They are kept in ``fields.json``, since a shell that waits for TAB cannot wait for torch, which recipes need. A test
compares the file with the recipe; ``python -m ohem.recipes.fields`` writes it anew.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

FILE = Path(__file__).parent / "fields.json"

Fields = dict[str, list[str]]
"""Dotted name -> all values, where they can be listed."""


def known_fields() -> Fields:
    """What the file says."""
    found: Fields = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def all_fields() -> Fields:
    """What the recipe says, options of every kind of detector, sampler, loss and ranking included."""
    from ohem.models.spec import DETECTORS, TORCHVISION_KINDS
    from ohem.recipes.files import built_in_recipes
    from ohem.recipes.kinds import Kinds
    from ohem.recipes.recipe import LOSSES, RANKINGS, SAMPLERS, Recipe

    found = dict(_of_model("", Recipe))
    named = [name for name in built_in_recipes() if not name.startswith("paper/")]
    found["detector"] = [*TORCHVISION_KINDS, *named]
    for spec in DETECTORS.values():
        for name, values in _of_model("detector.", spec):
            found.setdefault(name, values)
    parts: dict[str, Kinds[Any]] = {
        "sampler": SAMPLERS,
        "rpn_sampler": SAMPLERS,
        "loss": LOSSES,
        "ranking": RANKINGS,
    }
    for part, kinds in parts.items():
        found[part] = found[f"{part}.kind"] = list(kinds.classes)
        for cls in kinds.classes.values():
            hints = get_type_hints(cls)
            found |= {f"{part}.{each.name}": _values(hints[each.name]) for each in fields(cls)}
    return found


def _of_model(prefix: str, model: Any) -> Iterator[tuple[str, list[str]]]:
    for name, field in model.model_fields.items():
        parts = [each for each in (field.annotation, *get_args(field.annotation)) if hasattr(each, "model_fields")]
        for part in parts:
            yield from _of_model(f"{prefix}{name}.", part)
        if not parts:
            yield f"{prefix}{name}", _values(field.annotation)


def _values(annotation: Any) -> list[str]:
    """All there are, in YAML; none where they cannot be listed."""
    inner = get_args(annotation)
    listed = [value for each in (annotation, *inner) for value in _listed(each)]
    if listed and type(None) in inner:
        listed.append(None)
    return [value if isinstance(value, str) else json.dumps(value) for value in listed]


def _listed(annotation: Any) -> tuple[Any, ...]:
    if annotation is bool:
        return True, False
    return get_args(annotation) if get_origin(annotation) is Literal else ()


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(values)}" for name, values in all_fields().items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
