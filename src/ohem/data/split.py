"""Parts of a data set, drawn by image id: the same images on every machine and in whatever order they were read."""

import hashlib
from dataclasses import replace

from ohem.data.dataset import DetectionDataset, ImageId


def hold_out(dataset: DetectionDataset, share: float) -> tuple[DetectionDataset, DetectionDataset]:
    """Split off a validation set.

    Args:
        dataset: all images.
        share: of the images that are held out, in [0, 1).

    Returns:
        The images to train on and those held out; both keep the data set's order, classes and notes.
    """
    held = _draw(dataset, share, "holdout")
    return _part(dataset, {r.id for r in dataset.records} - held), _part(dataset, held)


def draw_fraction(dataset: DetectionDataset, share: float, seed: int) -> DetectionDataset:
    """A random part; of one seed, smaller parts are contained in larger ones."""
    return _part(dataset, _draw(dataset, share, f"fraction:{seed}"))


def draw_count(dataset: DetectionDataset, count: int) -> DetectionDataset:
    """At most ``count`` images, the same whatever the seed; 0: all of them."""
    if not count or len(dataset) <= count:
        return dataset
    return _part(dataset, _draw(dataset, count / len(dataset), "count"))


def _draw(dataset: DetectionDataset, share: float, stream: str) -> set[ImageId]:
    def key(image: ImageId) -> bytes:
        return hashlib.sha256(f"{stream}:{image!r}".encode()).digest()

    ids = sorted((record.id for record in dataset.records), key=key)
    return set(ids[: round(share * len(ids))])


def _part(dataset: DetectionDataset, ids: set[ImageId]) -> DetectionDataset:
    return replace(dataset, records=tuple(record for record in dataset.records if record.id in ids))
