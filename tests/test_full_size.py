"""One training step at the paper's size fits into the memory of an ordinary computer."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

STEP = """
import resource, sys
from pathlib import Path

import torch
from ohem.models.spec import BackboneSpec, DetectorSpec, HeadSpec
from ohem.models.weights import build_detector
from ohem.samplers import HardSampler

name, pool_size, fc7, images = sys.argv[1], *map(int, sys.argv[2:])
torch.set_num_threads(1)
torch.manual_seed(0)
spec = DetectorSpec(
    backbone=BackboneSpec(name=name, weights="none"), head=HeadSpec(pool_size=pool_size, fc=(4096, fc7))
)
detector = build_detector(spec, 20).train()
detector.sampler = HardSampler()
trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
optimizer = torch.optim.SGD(trained, lr=0.001, momentum=0.9, weight_decay=5e-4)

corner = torch.rand(2000, 2) * torch.tensor([700.0, 500.0])
proposals = torch.cat([corner, corner + 16 + torch.rand(2000, 2) * 84], dim=1)
target = {
    "boxes": torch.tensor([[100.0, 100, 300, 300], [400, 200, 700, 500]]), "labels": torch.tensor([1, 7])
}
step = detector.training_step(
    [torch.rand(3, 600, 800) for _ in range(images)], [proposals] * images, [target] * images
)
torch.autograd.backward(sum(step.losses.values()))
optimizer.step()
assert [len(losses.cls) for losses in step.score.losses] == [2002] * images
assert [len(index) for index in step.selected] == [64] * images
assert all(parameter.grad is not None for parameter in trained)

status = Path("/proc/self/status")
if status.exists():  # getrusage would count what the parent had in use when it started this process
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) * 1024)
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak if sys.platform == "darwin" else peak * 1024)
"""


@pytest.mark.parametrize(
    ("name", "pool_size", "fc7", "images"), [("vgg16", 7, 4096, 1), ("vgg_cnn_m_1024", 6, 1024, 2)]
)
def test_a_step_with_600_x_800_pixels_and_2000_rois_an_image_takes_less_than_6_gb(name, pool_size, fc7, images):
    """Weights, gradients and SGD's momentum included. VGG16 one image at a time, as the paper accumulates it."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, name, str(pool_size), str(fc7), str(images)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 6 * 10**9
