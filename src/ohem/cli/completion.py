"""What a shell completes beside commands and options. It waits for TAB, so nothing here loads torch."""

import typer

USE = (
    "detector.detection.",
    "detector.image.",
    "detector.proposals.",
    "detector.rpn.test_",
    "detector.rpn.nms_iou",
    "detector.rpn.min_score",
)
"""What the fields begin with that may still change when a detector is trained."""

TARGETS = (*(f"table{n}" for n in range(1, 7)), "figure3", "claims", "rivals", "joins", "rankings", "lengths")
"""Of ``ohem reproduce``."""


def recipe_names() -> list[str]:
    """The built-in recipes."""
    from ohem.recipes.files import built_in_recipes

    return built_in_recipes()


def recipe_fields(context: typer.Context, incomplete: str) -> list[str]:
    """``field=value`` for a training."""
    from ohem.recipes.fields import known_fields

    return _assignments(known_fields(), context, incomplete)


def use_fields(context: typer.Context, incomplete: str) -> list[str]:
    """``field=value`` for the use of a trained detector."""
    from ohem.recipes.fields import known_fields

    fields = {name.removeprefix("detector."): values for name, values in known_fields().items() if name.startswith(USE)}
    return _assignments(fields, context, incomplete)


def published_names() -> list[str]:
    """What ``ohem data`` gets."""
    from ohem.data.published import PUBLISHED

    return [one.name for one in PUBLISHED]


def targets() -> list[str]:
    """What ``ohem reproduce`` reproduces."""
    return list(TARGETS)


def _assignments(fields: dict[str, list[str]], context: typer.Context, incomplete: str) -> list[str]:
    """The names with ``=``, and with each value once the name is whole.

    bash gives ``sampler=ha`` as three words and takes the last; other shells give and take one.
    """
    *_, last = ["", *(word for word in context.params.get("overrides") or () if word != "=")]
    if last in fields:
        return fields[last]
    name, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{name}={value}" for value in fields.get(name, ())]
    return [f"{name}=" for name in fields]
