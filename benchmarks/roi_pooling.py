"""RoI pooling on this CPU: torchvision's operators against the compiled ones of ohem[fast], on random maps and boxes.

python benchmarks/roi_pooling.py [--repeats 9]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import roi_align, roi_pool

from ohem.models.roi_pooling import SAMPLES, align_rois, compiled_is_installed, max_pool_rois

SIDE, SCALE, TRAINED = 7, 1 / 16, 128
CASES = (("lite0, 320 px, 700 RoIs", 700, 128, 15, 20), ("VGG16, 600 x 800, 2,000 RoIs", 2000, 512, 38, 50))


def theirs(kind: str, features: Tensor, boxes: Tensor) -> Tensor:
    if kind == "max":
        return roi_pool(features, [boxes - boxes.new_tensor([0, 0, 1, 1])], (SIDE, SIDE), SCALE)
    return roi_align(features, [boxes], (SIDE, SIDE), SCALE, SAMPLES, aligned=True)


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    if not compiled_is_installed():
        raise SystemExit("roi_pooling: found no numba; allowed after: pip install 'ohem[fast]'")
    print(f"{torch.get_num_threads()} threads; medians of {repeats}, taken in turns; backward of {TRAINED} RoIs")
    for name, rois, channels, height, width in CASES:
        torch.manual_seed(0)
        features = torch.randn(1, channels, height, width).relu()
        corner = torch.rand(rois, 2) * torch.tensor([width, height]) * 13
        boxes = torch.cat([corner, corner + 10 + torch.rand(rois, 2) * width * 6], dim=1)
        for kind, ours in (("max", max_pool_rois), ("align", align_rois)):
            pools = (lambda f, b, k=kind: theirs(k, f, b), lambda f, b, o=ours: o(f, b, SIDE, SCALE))
            assert torch.equal(*(pool(features, boxes) for pool in pools))
            forward: tuple[list[float], list[float]] = ([], [])
            backward: tuple[list[float], list[float]] = ([], [])
            for repeat in range(repeats + 1):
                for which, pool in enumerate(pools):
                    seconds = timed(lambda p=pool, f=features, b=boxes: p(f, b))
                    variable = features.clone().requires_grad_()
                    pooled = pool(variable, boxes[:TRAINED])
                    back = timed(lambda p=pooled: p.backward(torch.ones_like(p)))
                    if repeat:  # the first is for the compiler
                        forward[which].append(seconds)
                        backward[which].append(back)
            for direction, (slow, fast) in (("forward", forward), ("backward", backward)):
                a, b = statistics.median(slow) * 1e3, statistics.median(fast) * 1e3
                print(
                    f"{name:30} {kind:6} {direction:8}  torchvision {a:7.1f} ms  ohem[fast] {b:7.1f} ms  x {a / b:.1f}"
                )


if __name__ == "__main__":
    main()
