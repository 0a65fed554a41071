"""Write docs/recipes.md from the recipe models and the built-in files, so that the page cannot differ from them.

python tools/recipe_page.py
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import yaml
from pydantic import PlainValidator, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ohem.models.spec import Spec, TorchvisionSpec
from ohem.recipes.files import built_in_recipes, find_recipe
from ohem.recipes.kinds import Kinds
from ohem.recipes.recipe import Recipe

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"

INTRO = """\
<!-- Written by `python tools/recipe_page.py`. Change the models or the recipe files, not this page. -->
# Recipes and their fields

A recipe is everything that decides a training run, apart from the data, as one YAML file. This page lists all of them and
all that can be said in one; [Training](training.md#the-recipe) shows how they are used.

```console
$ ohem recipes                        # the names of the built-in recipes
$ ohem recipes lite0 > mine.yaml      # one of them whole, every field written out
$ ohem train lite0 sampler=random optimizer.lr=0.0005 --data MY_DATA@train
```

A file may name another recipe as its `base` and say only what differs; parts are joined field by field, but a part with
another `kind` replaces the base's. A field that is unknown, or a value that is not allowed, is refused before anything runs.

What the samplers and losses do, and when each helps, is in [the samplers](samplers.md); what the rankings save, in [what it
costs](cost.md#approximations).
"""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([INTRO, *_recipes(), *_fields()]) + "\n"


def _recipes() -> Iterator[str]:
    yield "## Built-in recipes\n"
    paper = [name for name in built_in_recipes() if name.startswith("paper/")]
    for name in built_in_recipes():
        if name in paper:
            continue
        about, body = _recipe_file(name)
        yield f"### {name}\n\n{_sentences(about)}\n\n```yaml\n{body}```\n"
    yield "### The paper's rows\n"
    yield "Each training of the paper's tables; `ohem recipes paper/...` prints one. What was run of them: [the"
    yield "reproduction](reproduction.md).\n\n| recipe | what |\n|---|---|"
    for name in paper:
        yield f"| `{name}` | {' '.join(_recipe_file(name)[0])} |"
    yield ""


def _recipe_file(name: str) -> tuple[list[str], str]:
    """The lines of the comment at the head of a recipe file, and the rest of it."""
    lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("# ") for line in lines[:head]], "\n".join(lines[head:]) + "\n"


def _sentences(comment: list[str]) -> str:
    """A comment as a paragraph, its settings as code."""
    return re.sub(r"\b[\w.]+=[\w.]*\w", r"`\g<0>`", "\n".join(comment))


def _fields() -> Iterator[str]:
    homes: dict[type, str] = {}
    for title, cls in _sections(Recipe, ""):
        homes.setdefault(cls, title)
    yield "## Fields\n\nOf a recipe, at its top:\n"
    yield from _table(Recipe, homes)
    for cls, title in homes.items():
        yield f"### {title}\n\n{_markdown(_summary(cls), homes)}\n"
        yield from _table(cls, homes)


def _sections(spec: type[Spec], prefix: str, suffix: str = "") -> Iterator[tuple[str, type]]:
    """The parts of a recipe, depth first, by the names that they go by in files; two are called ``detector``."""
    for name, field in spec.model_fields.items():
        if (kinds := _kinds(field)) is not None:
            yield from ((f"{prefix}{name}: {kind}", cls) for kind, cls in kinds.classes.items())
        for part in _specs(field):
            whose = " of torchvision" if part is TorchvisionSpec else suffix
            yield f"{prefix}{name}{whose}", part
            yield from _sections(part, f"{prefix}{name}.", whose)


def _leaves(annotation: Any) -> Iterator[Any]:
    """What an annotation is made of: its classes and the marks of ``Annotated``."""
    yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)


def _kinds(field: FieldInfo) -> Kinds[Any] | None:
    for mark in (*field.metadata, *_leaves(field.annotation)):
        reader = getattr(mark.func, "__self__", None) if isinstance(mark, PlainValidator) else None
        if isinstance(reader, Kinds):
            return reader
    return None


def _specs(field: FieldInfo) -> list[type[Spec]]:
    return [part for part in _leaves(field.annotation) if isinstance(part, type) and issubclass(part, Spec)]


def _table(cls: type, homes: dict[type, str]) -> Iterator[str]:
    rows = list(_spec_rows(cls, homes) if issubclass(cls, Spec) else _option_rows(cls))
    if not rows:
        yield "No options.\n"
        return
    told = _descriptions(cls)
    yield "| field | allowed | default | meaning |\n|---|---|---|---|"
    for name, allowed, default in rows:
        yield f"| `{name}` | {allowed} | {default} | {_markdown(told[name], homes)} |"
    yield ""


def _spec_rows(cls: type[Spec], homes: dict[type, str]) -> Iterator[tuple[str, str, str]]:
    for name, field in cls.model_fields.items():
        kinds, parts = _kinds(field), _specs(field)
        optional = " or `null`" if type(None) in get_args(field.annotation) else ""
        if kinds is not None:
            allowed = ", ".join(f"[`{kind}`]({_anchor(homes[each])})" for kind, each in kinds.classes.items())
            default = "`null`" if field.default is None else f"`{kinds.write(field.default)['kind']}`"
        elif parts:
            allowed = " or ".join(f"[{homes[part]}]({_anchor(homes[part])})" for part in parts)
            default = _part_default(field.default)
        else:
            allowed, optional = _words(TypeAdapter(field.rebuild_annotation()).json_schema()), ""
            default = "to be named" if field.default is PydanticUndefined else _yaml(field.default)
        yield name, allowed + optional, default


def _part_default(value: Spec | None) -> str:
    """Of a part: what differs from the defaults in its own table."""
    if value is None:
        return "`null`"
    own = type(value)().model_dump(mode="json")
    differs = {name: part for name, part in value.model_dump(mode="json").items() if part != own[name]}
    return _yaml(differs) if differs else "as there"


def _option_rows(cls: type) -> Iterator[tuple[str, str, str]]:
    for name, hint in get_type_hints(cls, include_extras=True).items():
        field = inspect.signature(cls).parameters[name]
        yield name, _words(TypeAdapter(Annotated[hint, None]).json_schema(), _refusal(cls, name)), _yaml(field.default)


def _refusal(cls: type, name: str) -> str:
    """What a class that checks its options itself says is allowed of a number; none of them takes -1."""
    try:
        cls(**{name: -1})
    except ValueError as error:
        return str(error).partition("; allowed: ")[2].removesuffix(", or none")
    return ""


def _words(schema: dict[str, Any], said: str = "") -> str:
    """What a JSON schema allows; ``said`` are the bounds of a number, where the schema does not know them."""
    if "anyOf" in schema:
        return ", or ".join(_words(each, said) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        items = _words(schema["items"]).replace("number", "numbers", 1)
        return f"list of {schema['minItems']} or more: {items}" if "minItems" in schema else f"list: {items}"
    if schema["type"] in ("integer", "number"):
        bounds = said or _bounds(schema)
        return ("whole number" if schema["type"] == "integer" else "number") + (f", {bounds}" if bounds else "")
    return {"string": schema.get("format", "text"), "boolean": "`true`, `false`", "null": "`null`"}[schema["type"]]


def _bounds(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if schema["type"] == "integer" and above is not None:
        low, above = above + 1, None
    # Python writes 0.0 of what was given as 0, and whole numbers may be too long for a float.
    low, high, above, below = (
        int(end) if end is not None and end == int(end) else end for end in (low, high, above, below)
    )
    top = f"to {high}" if high is not None else f"below {below}" if below is not None else ""
    if above is not None:
        return f"above {above}" + (f", {top}" if top else "")
    if low is None:
        return top
    return f"{low} {top}" if high is not None else f"{low} or more" + (f", {top}" if top else "")


def _yaml(value: Any) -> str:
    """A value as one writes it in a file, rounded to six figures."""
    if isinstance(value, float):
        return f"`{value:.6g}`" if value != int(value) else f"`{value:.1f}`"
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0]


def _descriptions(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each attribute."""
    told: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?= {4}\w+: )", "\n" + attributes)[1:]:
            name, _, text = entry.strip().partition(": ")
            told[name] = " ".join(text.split())
    return told


def _markdown(text: str, homes: dict[type, str]) -> str:
    """A docstring's reStructuredText, with links to the parts that this page has, and YAML's names of values."""
    links = {cls.__name__: f"[{title}]({_anchor(title)})" for cls, title in homes.items()}

    def reference(match: re.Match[str]) -> str:
        return links.get(match[1].rpartition(".")[2], f"`{match[1]}`")

    pieces = re.split(r"(``.*?``)", re.sub(r":\w+:`(.*?)`", reference, " ".join(text.split())))
    for i, piece in enumerate(pieces):
        if piece.startswith("``"):
            pieces[i] = piece[1:-1]
        else:
            for python, written in (("None", "null"), ("True", "true"), ("False", "false")):
                pieces[i] = re.sub(rf"\b{python}\b", f"`{written}`", pieces[i])
    return "".join(pieces).replace("|", "\\|")


def _anchor(title: str) -> str:
    return "#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
