"""Recipe files as plain values, before they are checked: found by name, joined onto their bases, changed by overrides."""

from pathlib import Path
from typing import Any

import yaml

from ohem.data.rules import one_line, quoted
from ohem.errors import OhemError, did_you_mean


def built_in_recipes() -> list[str]:
    """Names of the recipes that ship with the package; the paper's rows are called ``paper/...``."""
    here = Path(__file__).parent
    return sorted(path.relative_to(here).with_suffix("").as_posix() for path in here.rglob("*.yaml"))


def find_recipe(name: str, beside: Path = Path()) -> Path:
    """The file of a recipe: a built-in one by name, any other by its path from the folder ``beside``.

    Raises:
        OhemError: there is none.
    """
    path = beside / name
    allowed = f"a recipe file, or one of {', '.join(built_in_recipes())}"
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise OhemError(f"{path}: found no such file; allowed: {allowed}")
        return path
    if name not in built_in_recipes():
        hint = did_you_mean(name, built_in_recipes())
        raise OhemError(f"recipe: found {name!r}{hint}; allowed: {allowed}")
    return Path(__file__).parent / f"{name}.yaml"


def read_values(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a recipe file says, joined onto what its bases say.

    Args:
        path: the file.
        seen: the files on the way to it, to find circles.

    Raises:
        OhemError: a file is no YAML mapping, or names itself or nothing as its base.
    """
    if path in seen:
        raise OhemError(f"{path}: base: found a circle; allowed: recipes that do not name each other")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    # Beside its own, PyYAML lets through what Python says of numbers, dates and nesting that it cannot take.
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise OhemError(f"{path}: found no readable YAML ({one_line(str(error), 300)})") from error
    if not isinstance(values, dict):
        raise OhemError(f"{path}: found {type(values).__name__}; allowed: fields and values")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise OhemError(f"{path}: base: found {quoted(base)}; allowed: the name of a recipe")
    return join_values(read_values(find_recipe(base, path.parent), (*seen, path)), values)


def join_values(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The base with a change: field by field, but a part with another ``kind`` than the base's replaces it."""
    joined = dict(base)
    for key, value in change.items():
        old = joined.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            joined[key] = join_values(old, value)
        else:
            joined[key] = value
    return joined


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set ``part.field=value``, the value in YAML, in the values of a recipe.

    Raises:
        OhemError: it has another form, or names a field inside a value.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise OhemError(f"{override!r}: found no field=value; allowed: such as optimizer.lr=0.01 or sampler=random")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise OhemError(f"{key}: found {quoted(text)}; allowed: a YAML value") from error
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if isinstance(child, str):
            child = values[parent] = {"kind": child}
        if not isinstance(child, dict):
            raise OhemError(f"{key}: found a field inside {parent}, which is {quoted(child)}; allowed: {parent}=VALUE")
        values = child
    values[last] = value
