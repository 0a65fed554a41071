"""Selective search: candidate regions from a hierarchy of segments, without learning.

Uijlings, van de Sande, Gevers, Smeulders: Selective Search for Object Recognition, IJCV 104(2), 2013, "the paper" here.
Segments and their grouping are OpenCV's (`cv2.ximgproc.segmentation`, with its scales and similarities for fast and
quality). The order is ours: OpenCV draws it from the C library's ``rand()``, which nothing in OpenCV seeds, so it
depends on the images before; and it puts small regions first, the inverse of the paper's.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ohem.errors import OhemError

Mode = Literal["fast", "quality"]

_SCALES = {"fast": (150, 300, 450), "quality": (150, 300, 450, 600, 750)}
"""The first segmentation's threshold k: the larger, the fewer segments (OpenCV's defaults)."""

_SMOOTHING = 0.8
_SMALLEST_SEGMENT = 100
"""In pixels; with the smoothing's sigma, OpenCV's defaults."""


def selective_search(
    image: NDArray[np.uint8],
    mode: Mode = "fast",
    max_proposals: int | None = None,
    min_size: float = 8.0,
    long_side: int = 500,
) -> NDArray[np.float32]:
    """Candidate regions of an image, the best first, each once; the whole image where nothing else is left.

    The same picture gives the same boxes in the same order, in any process and with any number of threads. Another
    version of OpenCV may segment differently.

    Args:
        image: (H, W, 3) uint8, RGB.
        mode: ``fast`` groups 6 segmentations (2 colour spaces, 3 scales) by 2 similarities, as Fast R-CNN's;
            ``quality`` 25 (5 colour spaces, 5 scales) by 4, for several times the boxes and the time.
        max_proposals: the most boxes to return; None for all.
        min_size: boxes with a side under this are left out; in pixels of the searched picture (see ``long_side``).
            Fast R-CNN's published boxes leave out sides under 16 px, too many for COCO's small objects.
        long_side: pictures with a longer side, in pixels, are shrunk to it before the search, since time grows
            faster than the pixels, and memory with their square. 500 is VOC's size and R-CNN's scale for the search.
            Smaller ones are searched as they are.

    Returns:
        (P, 4) float32 xyxy, 0-based half-open, in pixels of ``image``; P >= 1.

    Raises:
        OhemError: the installed OpenCV lacks the module ``ximgproc``.
    """
    _require_ximgproc()
    height, width = image.shape[:2]
    picture = _shrunk(image, long_side)
    boxes = _ranked([_regions(view, k, mode) for view, k in product(_views(picture, mode), _SCALES[mode])])
    boxes = boxes[np.all(boxes[:, 2:] - boxes[:, :2] >= min_size, axis=1)][:max_proposals]
    if not len(boxes):
        return np.array([[0, 0, width, height]], dtype=np.float32)
    scale = np.tile([width / picture.shape[1], height / picture.shape[0]], 2)
    return np.asarray(np.minimum(boxes * scale, [width, height, width, height]), dtype=np.float32)


def _require_ximgproc() -> None:
    if not hasattr(cv2, "ximgproc"):
        raise OhemError(
            f"selective search: found OpenCV {cv2.__version__} without its module ximgproc; allowed: the package "
            "opencv-contrib-python-headless, with no other opencv-python package installed beside it"
        )


def _shrunk(image: NDArray[np.uint8], long_side: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    factor = long_side / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _views(image: NDArray[np.uint8], mode: Mode) -> list[NDArray[Any]]:
    """The RGB image in the paper's colour spaces (section 3.2): HSV and Lab; for quality also I, H and rgI.

    Where the paper has hue, OpenCV's quality mode has blue: it reuses that channel's memory before the search.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    if mode == "fast":
        return [hsv, lab]
    intensity = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return [hsv, lab, intensity, hsv[..., 0].copy(), np.dstack([image[..., :2], intensity])]


def _regions(view: NDArray[Any], k: int, mode: Mode) -> NDArray[np.int64]:
    """The boxes of all regions in the groupings of one segmentation: (P, 4) xyxy, each once, in no order."""
    segmentation = cv2.ximgproc.segmentation
    search = segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(view)
    search.addImage(view)
    search.addGraphSegmentation(segmentation.createGraphSegmentation(_SMOOTHING, k, _SMALLEST_SEGMENT))
    # Strategies remember the histograms of the picture last seen, so each segmentation needs new ones.
    for similarity in _similarities(mode):
        search.addStrategy(similarity)
    xywh = np.asarray(search.process(), dtype=np.int64).reshape(-1, 4)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def _similarities(mode: Mode) -> list[Any]:
    """OpenCV's measures of which two neighbours to group next; each makes a hierarchy of its own."""
    segmentation = cv2.ximgproc.segmentation
    colour = segmentation.createSelectiveSearchSegmentationStrategyColor()
    fill = segmentation.createSelectiveSearchSegmentationStrategyFill()
    texture = segmentation.createSelectiveSearchSegmentationStrategyTexture()
    size = segmentation.createSelectiveSearchSegmentationStrategySize()
    mean = segmentation.createSelectiveSearchSegmentationStrategyMultiple
    both = [mean(colour, fill, texture, size), mean(fill, texture, size)]
    return both if mode == "fast" else [*both, fill, size]


def _ranked(groupings: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The boxes of all groupings, best first, each once (the paper's section 3.3, "Combining locations").

    The i-th region from the top of its hierarchy has the value RND * i, with RND uniform in [0, 1). The lowest values
    come first, and of equal boxes the lowest counts. We take the hierarchies of one segmentation together, and their
    regions by falling area, so that i grows on the way down.
    """
    # Unlike numpy's newer generators, RandomState gives the same numbers in every version (NEP 19).
    random = np.random.RandomState(0)
    boxes, values = [], []
    for regions in groupings:
        area = np.prod(regions[:, 2:] - regions[:, :2], axis=1)
        boxes.append(regions[np.lexsort((*regions.T, -area))])
        values.append(random.random_sample(len(regions)) * np.arange(1, len(regions) + 1))
    ranked = np.concatenate(boxes)[np.argsort(np.concatenate(values), kind="stable")]
    _, first = np.unique(ranked, axis=0, return_index=True)
    return ranked[np.sort(first)]
