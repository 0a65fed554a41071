"""What distinguishes recipes."""

from collections.abc import Mapping, Sequence
from typing import Any


def flat_fields(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names, such as ``sampler.kind``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_fields(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_fields(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of flat fields that are not the same in all, such as options that only one kind of sampler has."""
    every = set().union(*recipes)
    return sorted(key for key in every if any(key not in r or r[key] != recipes[0].get(key) for r in recipes))
