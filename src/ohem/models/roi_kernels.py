"""RoI pooling on a CPU, compiled by numba (``pip install 'ohem[fast]'``): torchvision's results, bit for bit.

torchvision's operators walk one channel after the other through the whole map. Here the channels of a cell lie side by
side and are the innermost loop, which the compiler turns into vector instructions. Numbers are added in the order of
torchvision's loops and never contracted, so a run is the same with and without this module.

Arrays are float32: maps (H, W, C), boxes (R, 4) as torchvision's operators read them, pooled values and their gradients
(R, C, S, S). Each function does the RoIs, or the channels, from ``first`` to ``last``; it does not hold the
interpreter's lock, so threads share the work.
"""

import numba
import numpy as np
from numba import float32

_LEAST = np.float32(np.finfo(np.float32).min)
_PAD = 16  # Without it, one channel's values of 512 channels would all lie in the same lines of the cache.


def _compiled(function):  # type: ignore[no-untyped-def]
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder to keep compiled code in
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def max_pool(features, boxes, scale, first, last, out):  # type: ignore[no-untyped-def]
    """RoI max-pooling of some RoIs; 0 where a bin is empty."""
    channels, side = out.shape[1], out.shape[2]
    pooled = np.empty((side, side, channels + _PAD), np.float32)
    for r in range(first, last):
        for i in range(side):
            for j in range(side):
                top, bottom, left, right = _bin(boxes[r], scale, side, features.shape, i, j)
                best = pooled[i, j, :channels]
                best[:] = _LEAST if bottom > top and right > left else float32(0)
                for y in range(top, bottom):
                    for x in range(left, right):
                        cell = features[y, x]
                        for c in range(channels):
                            best[c] = cell[c] if cell[c] > best[c] else best[c]
        _channels_first(pooled, out[r])


@_compiled
def max_pool_with_places(features, boxes, scale, first, last, out, places):  # type: ignore[no-untyped-def]
    """The same, and in ``places`` (R, C, S, S) int32 the cell that was the largest, counted along rows; -1: none."""
    channels, side = out.shape[1], out.shape[2]
    width = features.shape[1]
    pooled, found = (
        np.empty((side, side, channels + _PAD), np.float32),
        np.empty((side, side, channels + _PAD), np.int32),
    )
    for r in range(first, last):
        for i in range(side):
            for j in range(side):
                top, bottom, left, right = _bin(boxes[r], scale, side, features.shape, i, j)
                best, place = pooled[i, j, :channels], found[i, j, :channels]
                best[:] = _LEAST if bottom > top and right > left else float32(0)
                place[:] = -1
                for y in range(top, bottom):
                    for x in range(left, right):
                        cell = features[y, x]
                        for c in range(channels):
                            larger = cell[c] > best[c]
                            best[c] = cell[c] if larger else best[c]
                            place[c] = np.int32(y * width + x) if larger else place[c]
        _channels_first(pooled, out[r])
        _channels_first(found, places[r])


@_compiled
def max_pool_backward(gradient, places, first, last, out):  # type: ignore[no-untyped-def]
    """Add each pooled value's gradient to the cell it came from; of the channels from ``first`` to ``last``."""
    count, _, side, _ = gradient.shape
    width = out.shape[1]
    for r in range(count):
        for c in range(first, last):
            for i in range(side):
                for j in range(side):
                    place = places[r, c, i, j]
                    if place >= 0:
                        out[place // width, place % width, c] += gradient[r, c, i, j]


@_compiled
def align(features, boxes, scale, samples, first, last, out):  # type: ignore[no-untyped-def]
    """RoIAlign (``aligned=True``) of some RoIs: the mean of samples x samples points in each bin."""
    channels, side = out.shape[1], out.shape[2]
    pooled, count = np.empty((side, side, channels + _PAD), np.float32), float32(samples * samples)
    for r in range(first, last):
        x0, y0, bin_width, bin_height = _grid(boxes[r], scale, side)
        for i in range(side):
            for j in range(side):
                total = pooled[i, j, :channels]
                total[:] = 0
                for a in range(samples):
                    inside_y, top, bottom, low_y, high_y = _between(
                        _point(y0, i, a, bin_height, samples), features.shape[0]
                    )
                    for b in range(samples):
                        inside_x, left, right, low_x, high_x = _between(
                            _point(x0, j, b, bin_width, samples), features.shape[1]
                        )
                        if not (inside_y and inside_x):
                            continue
                        w1, w2, w3, w4 = high_y * high_x, high_y * low_x, low_y * high_x, low_y * low_x
                        one, two = features[top, left], features[top, right]
                        three, four = features[bottom, left], features[bottom, right]
                        for c in range(channels):
                            total[c] += w1 * one[c] + w2 * two[c] + w3 * three[c] + w4 * four[c]
                for c in range(channels):
                    total[c] /= count
        _channels_first(pooled, out[r])


@_compiled
def align_backward(gradient, boxes, scale, samples, first, last, out):  # type: ignore[no-untyped-def]
    """Spread each pooled value's gradient over the cells it was taken from; of the channels ``first`` to ``last``."""
    rois, _, side, _ = gradient.shape
    own, count = np.empty(last - first, np.float32), float32(samples * samples)
    for r in range(rois):
        x0, y0, bin_width, bin_height = _grid(boxes[r], scale, side)
        for i in range(side):
            for j in range(side):
                for c in range(last - first):
                    own[c] = gradient[r, first + c, i, j]
                for a in range(samples):
                    inside_y, top, bottom, low_y, high_y = _between(_point(y0, i, a, bin_height, samples), out.shape[0])
                    for b in range(samples):
                        inside_x, left, right, low_x, high_x = _between(
                            _point(x0, j, b, bin_width, samples), out.shape[1]
                        )
                        if not (inside_y and inside_x):
                            continue
                        w1, w2, w3, w4 = high_y * high_x, high_y * low_x, low_y * high_x, low_y * low_x
                        one, two = out[top, left, first:last], out[top, right, first:last]
                        three, four = out[bottom, left, first:last], out[bottom, right, first:last]
                        for c in range(last - first):
                            one[c] += own[c] * w1 / count
                            two[c] += own[c] * w2 / count
                            three[c] += own[c] * w3 / count
                            four[c] += own[c] * w4 / count


@_compiled
def _channels_first(pooled, out):  # type: ignore[no-untyped-def]
    """Copy (S, S, C and padding) into (C, S, S)."""
    channels, side, _ = out.shape
    for c in range(channels):
        for i in range(side):
            for j in range(side):
                out[c, i, j] = pooled[i, j, c]


@_compiled
def _bin(box, scale, side, shape, i, j):  # type: ignore[no-untyped-def]
    """Top, bottom, left and right of bin (i, j) in cells, the ends excluded."""
    x0, y0, x1, y1 = _round(box[0] * scale), _round(box[1] * scale), _round(box[2] * scale), _round(box[3] * scale)
    height = float32(max(y1 - y0 + 1, 1)) / float32(side)
    width = float32(max(x1 - x0 + 1, 1)) / float32(side)
    top = min(max(int(np.floor(float32(i) * height)) + y0, 0), shape[0])
    bottom = min(max(int(np.ceil(float32(i + 1) * height)) + y0, 0), shape[0])
    left = min(max(int(np.floor(float32(j) * width)) + x0, 0), shape[1])
    right = min(max(int(np.ceil(float32(j + 1) * width)) + x0, 0), shape[1])
    return top, bottom, left, right


@_compiled
def _round(value):  # type: ignore[no-untyped-def]
    """C's: halves go away from zero."""
    exact = np.float64(value)
    return int(np.floor(exact + 0.5)) if exact >= 0 else int(np.ceil(exact - 0.5))


@_compiled
def _grid(box, scale, side):  # type: ignore[no-untyped-def]
    """Left, top, and width and height of a bin, in cells."""
    x0, y0 = box[0] * scale - float32(0.5), box[1] * scale - float32(0.5)
    x1, y1 = box[2] * scale - float32(0.5), box[3] * scale - float32(0.5)
    return x0, y0, (x1 - x0) / float32(side), (y1 - y0) / float32(side)


@_compiled
def _point(start, position, sample, size, samples):  # type: ignore[no-untyped-def]
    """Where a sample of the bin at ``position`` lies."""
    return start + float32(position) * size + (float32(sample) + float32(0.5)) * size / float32(samples)


@_compiled
def _between(point, count):  # type: ignore[no-untyped-def]
    """Whether a point counts, the cells before and after it, and its distances from both."""
    inside = point >= -1 and point <= count
    point = max(point, float32(0))
    low = min(int(point), count - 1)
    high = min(low + 1, count - 1)
    distance = float32(0) if low == high else point - float32(low)
    return inside, low, high, distance, float32(1) - distance
