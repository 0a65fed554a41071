"""Training steps of Fast R-CNN with images channels-last against torch's own layout, taking turns.

python benchmarks/layouts.py [--networks vgg16 vgg_cnn_m_1024 lite0] [--repeats 5]

Channels-last is what backbones take on a CPU, but for dense convolutions that train without AVX-512.
"""

import argparse
import os
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch

from subjects import SIZES, FastRcnnSteps
from timing import line, turns


def step(steps: FastRcnnSteps, slow: bool) -> None:
    steps.detector.backbone.slow_channels_last = slow
    steps.step("FRCN")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=tuple(SIZES), default=tuple(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"{capability}, {torch.get_num_threads()} threads; medians of {arguments.repeats}; seconds a step")
    for network in arguments.networks:
        height, width, rois = SIZES[network]
        steps = FastRcnnSteps(network, rois, (height, width))
        chosen = "torch's own" if steps.detector.backbone.slow_channels_last else "channels-last"
        works = {"channels-last": partial(step, steps, False), "torch's own": partial(step, steps, True)}
        found = turns(works, arguments.repeats)
        print(line(network, {**found.seconds(), **found.ratios(*works)}), f"; chosen: {chosen}", flush=True)


if __name__ == "__main__":
    main()
