"""A run is a folder that explains itself.

``recipe.yaml`` what was asked for; ``run.json`` data, fingerprint, preprocessing, seed, versions; ``log.jsonl`` one
record a line; ``checkpoints/last.pt`` to go on from; ``weights.safetensors`` the result and ``best.safetensors`` the
best on the validation split; ``snapshots/`` weights on the way, where the recipe asks for them; ``failed-step-*.pt`` a
step whose loss was not finite; ``.lock`` while a process trains it.
"""

import fcntl
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from ohem.data.dataset import DetectionDataset, Proposals
from ohem.data.rules import one_line, quoted
from ohem.errors import OhemError
from ohem.files import next_folder, write_atomically
from ohem.models.backbones import Preprocessing
from ohem.processor import processor_name
from ohem.recipes.recipe import Recipe, dump_recipe, load_recipe

FORMAT = 1

Weights = Literal["best", "last"]
"""Which weights of a run: the best on its validation split, where it had one, or those after the last step."""


@dataclass(frozen=True)
class Sources:
    """Where a run's images came from, as the user wrote it; empty where not given.

    Attributes:
        train: data sources.
        val: data sources of the validation split.
        proposals: proposal files; empty: selective search, made when missing.
        val_proposals: the same for the validation split.
    """

    train: tuple[str, ...]
    val: tuple[str, ...] = ()
    proposals: tuple[str, ...] = ()
    val_proposals: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, given in vars(self).items():  # one string, or a list, as a script may have it
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))


class Run:
    """The folder of one training run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe_file = folder / "recipe.yaml"
        self.info_file = folder / "run.json"
        self.log_file = folder / "log.jsonl"
        self.checkpoint_file = folder / "checkpoints" / "last.pt"
        self.weights_file = folder / "weights.safetensors"
        self.best_file = folder / "best.safetensors"

    def snapshot_file(self, iteration: int) -> Path:
        """The weights kept after so many iterations."""
        return self.folder / "snapshots" / f"{iteration:07d}.safetensors"

    def failed_step_file(self, iteration: int) -> Path:
        """A step whose loss was not finite, kept to be run again."""
        return self.folder / f"failed-step-{iteration:07d}.pt"

    @classmethod
    def create(
        cls,
        folder: Path,
        recipe: Recipe,
        sources: Sources,
        dataset: DetectionDataset,
        trained_on: str,
        validated_on: str | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> "Run":
        """Make a new folder with recipe and run.json, which keeps the fingerprints of both sets and the preprocessing.

        Raises:
            OhemError: the folder exists and is not empty; nothing in it is touched.
        """
        there = folder.exists()  # asked once: another training may make it at any moment
        if there and (not folder.is_dir() or any(folder.iterdir())):
            allowed = f"a new folder, or --resume {quote(str(folder))}"
            raise OhemError(f"{folder}: found something there already; allowed: {allowed}")
        info = {
            "format": FORMAT,
            "sources": {name: list(values) for name, values in vars(sources).items()},
            "data": {
                "name": dataset.name,
                "images": len(dataset),
                "fingerprint": trained_on,
                "validation": validated_on,
            },
            "classes": list(dataset.classes),
            "preprocessing": preprocessing and asdict(preprocessing),
            "seed": recipe.seed,
            "machine": machine(),
        }
        if there:  # perhaps a disk of its own, which cannot be renamed onto
            cls(folder)._begin(recipe, info)
            return cls(folder)
        # Both files or none: half a run could neither be resumed nor begun again.
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as name:
            half = cls(Path(name) / "run")
            half._begin(recipe, info)
            half.folder.rename(folder)
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run.

        Raises:
            OhemError: not a run folder, or one of another format.
        """
        run = cls(folder)
        if not run.info_file.is_file() or not run.recipe_file.is_file():
            raise OhemError(f"{folder}: found no run.json and recipe.yaml; allowed: a folder that `ohem train` made")
        found = run.info().get("format")
        if found != FORMAT:
            raise OhemError(f"{run.info_file}: format: found {found!r}; allowed: {FORMAT}")
        return run

    def _begin(self, recipe: Recipe, info: Mapping[str, Any]) -> None:
        write_atomically(self.recipe_file, dump_recipe(recipe))
        write_atomically(self.info_file, json.dumps(info, indent=2) + "\n")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other process train this run meanwhile. The lock goes with the process, however that ends.

        Raises:
            OhemError: another process trains it now.
        """
        path = self.folder / ".lock"
        with path.open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise OhemError(
                    f"{self.folder}: found a training of it that is running; allowed: ohem watch, or one at a time"
                ) from error
            except OSError:  # a file system without locks
                pass
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for folder in {self.folder, self.checkpoint_file.parent, self.snapshot_file(0).parent}:
            for path in folder.glob(".*.tmp"):
                path.unlink()

    def recipe(self) -> Recipe:
        """The recipe, as it was completed when the run began."""
        return load_recipe(str(self.recipe_file))

    def info(self) -> dict[str, Any]:
        """What run.json holds.

        Raises:
            OhemError: it is damaged.
        """
        try:
            info = json.loads(self.info_file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise OhemError(f"{self.info_file}: found no readable JSON ({one_line(str(error))})") from error
        if not isinstance(info, dict):
            raise OhemError(f"{self.info_file}: found {type(info).__name__}; allowed: an object")
        return info

    def sources(self) -> Sources:
        """Where its images came from.

        Raises:
            OhemError: run.json does not tell.
        """
        try:
            return Sources(**TypeAdapter(dict[str, tuple[str, ...]]).validate_python(self.info()["sources"]))
        except (KeyError, TypeError, ValidationError) as error:
            allowed = f"lists of texts: {', '.join(vars(Sources(())))}"
            raise OhemError(f"{self.info_file}: sources: found no such thing; allowed: {allowed}") from error

    def told(self, *names: str) -> Any:
        """What run.json holds below these names, one in the other; None where it holds nothing there."""
        found: Any = self.info()
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1..C.

        Raises:
            OhemError: run.json does not tell.
        """
        found = self.told("classes")
        if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
            raise OhemError(f"{self.info_file}: classes: found {quoted(found)}; allowed: a list of texts")
        return tuple(found)

    def preprocessing(self) -> Preprocessing | None:
        """Of the weights that it began with; None where run.json does not tell, as of earlier versions.

        Raises:
            OhemError: run.json holds something else there.
        """
        found = self.told("preprocessing")
        try:
            return TypeAdapter(Preprocessing | None).validate_python(found)
        except ValidationError as error:
            raise OhemError(
                f"{self.info_file}: preprocessing: found {quoted(found)}; allowed: how training made it"
            ) from error

    def data_fingerprint(self) -> str:
        """Of what it was trained on; see :func:`fingerprint`.

        Raises:
            OhemError: run.json does not tell.
        """
        found = self.told("data", "fingerprint")
        if not isinstance(found, str):
            raise OhemError(f"{self.info_file}: data.fingerprint: found {quoted(found)}; allowed: a text")
        return found

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record to the log."""
        with self.log_file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def log(self) -> list[dict[str, Any]]:
        """All records; a last line cut short by a crash is left out.

        Raises:
            OhemError: a line is no record.
        """
        if not self.log_file.exists():
            return []
        lines = self.log_file.read_bytes().split(b"\n")
        return [self._record(number, line) for number, line in enumerate(lines[:-1], start=1) if line]

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        record = read_record(line)
        if record is None:
            found = quoted(line[:80].decode(errors="replace"))
            raise OhemError(f"{self.log_file}: line {number}: found {found}; allowed: {RECORD}")
        return record

    def newest_evaluation(self) -> Path | None:
        """The newest ``metrics.json`` in the folder."""
        return max(self.folder.glob("*/metrics.json"), key=lambda path: path.stat().st_mtime, default=None)

    def forget_after(self, iteration: int) -> None:
        """Drop log records later than ``iteration``; the resumed run writes them again."""
        kept = [json.dumps(record) + "\n" for record in self.log() if record["iteration"] <= iteration]
        write_atomically(self.log_file, "".join(kept))


RECORD = "a JSON record with its kind and iteration, and numbers for losses, lr, seconds and memory"
_NUMBERS = ("lr", "loss_selected_rois", "loss_all_rois", "foreground_share", "peak_memory_mb")


def read_record(line: bytes) -> dict[str, Any] | None:
    """A line of a log; None where it is no record.

    A record says its kind and iteration, and holds numbers where its readers calculate. They may be missing, as from logs
    of older versions.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("iteration")) is not int or not isinstance(found.get("kind"), str):
        return None
    seconds = found.get("seconds", {})
    if not isinstance(seconds, dict):
        return None
    numbers = (found[name] for name in _NUMBERS if found.get(name) is not None)
    return found if all(type(value) in (int, float) for value in (*seconds.values(), *numbers)) else None


def find_weights(source: Path | str, which: Weights) -> Path:
    """The weights file that a run's folder, or the name of a file, means.

    Raises:
        OhemError: there is none (yet).
    """
    source = Path(source)
    if not source.is_dir():
        return source
    run = Run.open(source)
    if which == "best" and run.best_file.is_file():
        return run.best_file
    if not run.weights_file.is_file():
        finish = f"ohem train --resume {quote(str(source))}"
        raise OhemError(f"{source}: found no {run.weights_file.name}; allowed: a finished run ({finish})")
    return run.weights_file


def newest_folder(folder: Path) -> Path:
    """The last of ``folder``, ``folder-2``, ... that exists; the folder itself where none does."""
    after = next_folder(folder)
    number = after.name.removeprefix(folder.name).removeprefix("-")
    return folder if number in ("", "2") else folder.with_name(f"{folder.name}-{int(number) - 1}")


def fingerprint(dataset: DetectionDataset, proposals: Proposals) -> str:
    """A digest of what trains: ids, sizes, annotations and proposals (not pixels)."""
    digest = hashlib.sha256(repr(dataset.classes).encode())
    for record in dataset.records:
        digest.update(repr((record.id, record.width, record.height)).encode())
        for array in (record.boxes, record.labels, record.difficult, record.crowd, proposals[record.id]):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def machine() -> dict[str, Any]:
    """What could make the same seed give other weights: versions, processor, threads."""
    packages: Sequence[str] = (
        "ohem",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "opencv-contrib-python-headless",
        "pillow",
    )
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        # The instructions that torch uses, too: names may be shared.
        "processor": f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
