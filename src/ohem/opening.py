"""What most commands begin with: data and proposals made ready, a device, and someone to tell how it goes."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ohem.data.check import load_checked
from ohem.data.dataset import DetectionDataset, Proposals
from ohem.data.rules import Annotations, as_names
from ohem.data.sources import load_dataset
from ohem.errors import DataError, OhemError
from ohem.models.spec import ProposalSpec
from ohem.proposals.cache import ProposalCache, ProposalSetting, default_cache_path, make_proposals
from ohem.proposals.imports import load_proposals, validate_proposals
from ohem.recipes.recipe import DataSpec


class Reporter(Protocol):
    """How long work tells of itself."""

    def say(self, text: str) -> None:
        """One sentence for the user."""

    def warn(self, text: str) -> None:
        """One sentence about what was left out or is wrong; it is shown where nothing else is."""

    def progress(self, task: str, done: int, total: int) -> None:
        """``done`` of ``total`` pieces of ``task`` are finished."""

    def record(self, record: Mapping[str, Any]) -> None:
        """A log record of training."""


class _Silent:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def progress(self, task: str, done: int, total: int) -> None:
        """Nothing."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


SILENT = _Silent()


def open_dataset(
    sources: Sequence[str], spec: DataSpec, reporter: Reporter, annotations: Annotations = "required"
) -> DetectionDataset:
    """Read and join data sets, and look at every image's header, before anything long begins.

    ``annotations`` as in :func:`ohem.data.sources.load_dataset`.

    Raises:
        DataError: with all faults of all annotations and images.
    """
    dataset = load_checked(
        lambda: load_dataset(
            sources,
            spec.classes,
            other_classes=spec.other_classes,
            bad_boxes=spec.bad_boxes,
            annotations=annotations,
        ),
        decode=False,
        progress=partial(reporter.progress, "checking images"),
    )
    for note in dataset.notes:
        reporter.warn(f"{dataset.name}: {note}")
    return dataset


def open_proposals(
    dataset: DetectionDataset,
    files: Sequence[str] | str,
    spec: ProposalSpec | None,
    workers: int,
    reporter: Reporter,
    cache: Path | None = None,
) -> Proposals:
    """Proposals from the named files, or selective search's, made where they are missing and kept in a cache file.

    None of any image where ``spec`` is None: for a detector that makes its own.

    Raises:
        OhemError: a file is unreadable, does not have the boxes of every image, or is of no use.
    """
    files = as_names(files)
    if spec is None:
        if files:
            raise OhemError(f"proposals: found {files[0]}; allowed for a detector with a region proposal network: none")
        return {record.id: np.zeros((0, 4), np.float32) for record in dataset.records}
    if files:
        proposals, notes = load_proposals([Path(name) for name in files])
        for note in notes:
            reporter.say(note)
        faults = validate_proposals(proposals, dataset.records)
        if faults:
            raise DataError(faults)
        return proposals
    setting = ProposalSetting(mode=spec.mode)
    path = cache or default_cache_path(dataset, setting)
    report = make_proposals(
        dataset.records,
        path,
        setting,
        max(workers, 1),
        partial(reporter.progress, "selective search"),
    )
    if report.made:
        reporter.say(f"proposals of {report.made} images made in {report.seconds:.0f} s, kept in {path}")
    return ProposalCache(path)


def pick_device(name: str | None) -> torch.device:
    """The named device, or CUDA where there is one, or the CPU.

    Raises:
        OhemError: no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OhemError(
            f"device: found {name!r} ({str(error).splitlines()[0]}); allowed: cpu, or a GPU of this machine"
        ) from error
    return device
