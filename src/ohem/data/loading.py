"""From a record on disk to what the detector takes: decoded, resized, mirrored, with its proposals."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ohem.data.dataset import ImageId, ImageRecord, Proposals
from ohem.data.images import read_image
from ohem.errors import DataError, Fault, OhemError
from ohem.models.spec import ImageSpec
from ohem.threads import opencv_in_one_thread


@dataclass(frozen=True)
class Draw:
    """Which image, and how it is varied. Drawn in one place, so that workers have no randomness of their own.

    Attributes:
        index: of the record.
        flip: mirror it.
        shortest: the shortest side in pixels; None: the spec's.
    """

    index: int
    flip: bool = False
    shortest: int | None = None


@dataclass
class Sample:
    """One image ready for the detector; boxes in its own pixels, xyxy, 0-based half-open.

    Attributes:
        id: of the record.
        image: (3, H, W) uint8 RGB.
        proposals: (P, 4) float32.
        target: ``boxes`` (G, 4) float32, ``labels`` (G,) int64, ``difficult`` and ``crowd`` (G,) bool, and of
            :class:`Samples` ``image_id``, the index of the record.
        scale: (x, y) factors from the original image to this one.
    """

    id: ImageId
    image: Tensor
    proposals: Tensor
    target: dict[str, Tensor]
    scale: tuple[float, float]


def resize(image: NDArray[np.uint8], spec: ImageSpec) -> NDArray[np.uint8]:
    """Bring the shortest side to ``spec.shortest``, unless the longest would pass ``spec.longest`` (section 5.1).

    Bilinear as in the authors' code when enlarging, area average when shrinking by more than half.
    """
    height, width = image.shape[:2]
    factor = min(spec.shortest / min(height, width), spec.longest / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = cv2.INTER_AREA if factor < 0.5 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


def make_sample(
    record: ImageRecord,
    proposals: NDArray[np.float32],
    spec: ImageSpec,
    *,
    flip: bool = False,
    shortest: int | None = None,
    max_proposals: int = 0,
) -> Sample:
    """Read, resize and, when asked, mirror one image and its boxes."""
    original = read_image(record.path)
    if shortest is not None:
        spec = spec.model_copy(update={"shortest": shortest})
    image = resize(original, spec)
    height, width = image.shape[:2]
    scale = (width / original.shape[1], height / original.shape[0])
    factors = torch.tensor([*scale, *scale])
    boxes = torch.from_numpy(record.boxes.astype(np.float32)) * factors
    kept = proposals[:max_proposals] if max_proposals else proposals
    regions = torch.from_numpy(np.array(kept, dtype=np.float32).reshape(-1, 4)) * factors
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if flip:
        pixels, boxes, regions = pixels.flip(2), mirror(boxes, width), mirror(regions, width)
    target = {
        "boxes": boxes,
        "labels": torch.from_numpy(record.labels),
        "difficult": torch.from_numpy(record.difficult),
        "crowd": torch.from_numpy(record.crowd),
    }
    return Sample(record.id, pixels, regions, target, scale)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes (R, 4) in the mirrored image."""
    return torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)


class Samples(Dataset[Any]):
    """Samples of a data set by :class:`Draw`. What goes wrong in a worker is handed back, to be raised in one piece.

    Image files must stay as they were when this was made: one that is replaced on the way is an error, since its
    annotations and proposals were another's, and a run that saw both could not be repeated.
    """

    def __init__(
        self, records: Sequence[ImageRecord], proposals: Proposals, spec: ImageSpec, max_proposals: int = 0
    ) -> None:
        self.records, self.proposals, self.spec, self.max_proposals = records, proposals, spec, max_proposals
        self._stamps = np.array([_stamp(record.path) for record in records], dtype=np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, draw: Draw) -> Sample | OhemError:
        record = self.records[draw.index]
        try:
            if _stamp(record.path) != tuple(self._stamps[draw.index].tolist()):
                allowed = "files that stay as they are until the end"
                raise DataError([Fault(record.path, "", "another file than at the beginning, or none", allowed)])
            proposals = self.proposals[record.id]
            sample = make_sample(
                record,
                proposals,
                self.spec,
                flip=draw.flip,
                shortest=draw.shortest,
                max_proposals=self.max_proposals,
            )
        except OhemError as error:
            return error
        sample.target["image_id"] = torch.tensor(draw.index)
        return sample


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; none of its own where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def load_batches(samples: Samples, batches: Sequence[Sequence[Draw]], workers: int) -> Iterator[list[Sample]]:
    """Batches in order, read ahead by ``workers`` processes (0: none). The order does not depend on their number.

    Raises:
        OhemError: an image could not be read, or has changed, or a worker was killed.
        RuntimeError: a worker was killed while the main process did something else; torch raises it there.
    """
    loader = DataLoader(
        samples,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_quiet_worker,
        generator=torch.Generator(),  # else it draws from torch's own stream, which belongs to dropout
    )
    with opencv_in_one_thread(), _workers_alive():
        for batch in loader:
            for sample in batch:
                if isinstance(sample, OhemError):
                    raise sample
            yield batch


@contextmanager
def _workers_alive() -> Iterator[None]:
    """A killed worker shows as torch's error, or as the end of a connection to it, whichever is noticed first."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not is_of_killed_worker(error):
            raise
        raise OhemError(KILLED_WORKER) from error


KILLED_WORKER = (
    "workers: found a process that reads images killed, as where memory ends; allowed after mending it: the same"
    " command, or for a training --resume RUN, with fewer --workers"
)


def is_of_killed_worker(error: BaseException | None) -> bool:
    """Whether this is what torch raises, out of a signal handler and so wherever the main process is."""
    return isinstance(error, RuntimeError) and "DataLoader worker" in str(error)


def training_batches(
    count: int, per_step: int, steps: range, seed: int, flip: bool, scales: Sequence[int] = ()
) -> list[list[Draw]]:
    """The images of each step: every image once an epoch, in an order that follows from the seed alone.

    Args:
        count: images in the data set.
        per_step: N.
        steps: which steps; a resumed run asks for the rest.
        seed: of the order's own stream.
        flip: mirror each draw with probability a half.
        scales: each draw takes one of these shortest sides at random; empty: the spec's.
    """
    epochs: dict[int, list[Draw]] = {}

    def draw(position: int) -> Draw:
        epoch, place = divmod(position, count)
        if epoch not in epochs:
            epochs.clear()
            rng = np.random.default_rng([seed, epoch])
            flips = rng.random(count) < (0.5 if flip else 0.0)
            order = rng.permutation(count)
            sides = rng.choice(scales, count).tolist() if scales else [None] * count
            epochs[epoch] = [Draw(int(i), bool(f), s) for i, f, s in zip(order, flips, sides, strict=True)]
        return epochs[epoch][place]

    return [[draw(step * per_step + i) for i in range(per_step)] for step in steps]


def _quiet_worker(_: int) -> None:
    # Ctrl-C reaches every process of the terminal: the main one finishes its step and needs its workers for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
