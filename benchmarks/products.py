"""float32 matrix products of a RoI head: torch's linear layers against oneDNN's product, taking turns.

python benchmarks/products.py [--repeats 5]
"""

import argparse
import os
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import torch
from torch import nn

from ohem.models.products import linear, onednn_fits
from timing import line, turns

LAYERS = {"VGG16 fc6": (25088, 4096), "VGG fc7": (4096, 4096), "lite0 fc": (2352, 512)}
ROIS = (64, 334, 2000)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{torch.get_num_threads()} threads; medians of {repeats}; GFLOP/s")
    for name, (inputs, outputs) in LAYERS.items():
        layer = nn.Linear(inputs, outputs)
        for rois in ROIS:
            values = torch.rand(rois, inputs)
            assert onednn_fits(layer, values), "this torch has no oneDNN"
            works = {"torch": partial(layer, values), "oneDNN": partial(linear, layer, values)}
            found = turns(works, repeats)
            speeds = {work: 2e-9 * rois * inputs * outputs / s for work, s in found.seconds().items()}
            print(line(f"{name}, {rois} RoIs", {**speeds, **found.ratios("torch", "oneDNN")}), flush=True)


if __name__ == "__main__":
    main()
