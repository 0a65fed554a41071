"""Settings that are one of several data classes."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ohem.data.rules import quoted
from ohem.errors import did_you_mean

_T = TypeVar("_T")


class Kinds(Generic[_T]):
    """A setting that is one of several data classes, told apart by ``kind``; their fields are its options.

    Args:
        classes: the classes by name; options without a ``kind`` are the first one's.
    """

    def __init__(self, classes: Mapping[str, type[_T]]) -> None:
        self.classes = classes

    def read(self, value: Any) -> _T:
        """From ``hard``, ``{kind: hard, nms_iou: 0.5}``, or an object of one of the classes.

        Raises:
            ValueError: a kind or an option that is unknown or wrong.
        """
        for cls in self.classes.values():
            if isinstance(value, cls):
                return value
        options = {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
        kind = options.pop("kind", next(iter(self.classes)) if options else None)
        if not isinstance(kind, str) or kind not in self.classes:
            hint = did_you_mean(kind, self.classes)
            raise ValueError(f"kind: found {quoted(kind)}{hint}; allowed: {', '.join(self.classes)}")
        known = [field.name for field in fields(self.classes[kind])]  # type: ignore[arg-type]
        for name, option in options.items():
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(
                    f"{name}: found an unknown field{hint}; allowed for {kind}: {', '.join(known) or 'none'}"
                )
            if isinstance(option, float) and not math.isfinite(option):
                raise ValueError(f"{name}: found {option}; allowed: finite numbers")
        try:
            return TypeAdapter(self.classes[kind]).validate_python(options)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "value_error":  # the class's own words name the field
                raise first["ctx"]["error"] from error
            where, allowed = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Input should be ")
            raise ValueError(f"{where}: found {quoted(first['input'])}; allowed: {allowed}") from error

    def name_of(self, value: _T) -> str:
        """The kind of an object of one of the classes."""
        return next(name for name, cls in self.classes.items() if type(value) is cls)

    def write(self, value: _T) -> dict[str, Any]:
        """As :meth:`read` reads it, defaults included."""
        return {"kind": self.name_of(value), **asdict(value)}  # type: ignore[call-overload]
