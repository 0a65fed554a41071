"""The compiled RoI pooling against torchvision's operators: the same bits, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align, roi_pool

from ohem.models.roi_pooling import align_rois, compiled_is_installed, max_pool_rois

pytestmark = pytest.mark.skipif(not compiled_is_installed(), reason="needs ohem[fast]")


def reference(kind, features, boxes, size, scale):
    if kind == "max":
        return roi_pool(features, [boxes - boxes.new_tensor([0, 0, 1, 1])], (size, size), scale)
    return roi_align(features, [boxes], (size, size), scale, 2, aligned=True)


def random_case(seed, rois, channels, height, width):
    """Boxes of all sizes, some of them in part or wholly outside of the image, some with corners halfway between."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(1, channels, height, width, generator=rng)
    corner = (torch.rand(rois, 2, generator=rng) * 1.6 - 0.3) * torch.tensor([width * 16.0, height * 16.0])
    size = torch.rand(rois, 2, generator=rng) ** 3 * 20 * max(height, width) + 0.5
    boxes = torch.cat([corner, corner + size], dim=1)
    boxes[::3] = (boxes[::3] / 8).round() * 8 + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return features, boxes


@pytest.mark.parametrize("kind", ["max", "align"])
@settings(deadline=None)  # the first example waits for the compiler
@given(
    seed=st.integers(0, 10**6),
    rois=st.integers(0, 12),
    channels=st.integers(1, 20),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.integers(1, 7),
    threads=st.integers(1, 3),
)
def test_equals_torchvision_bit_for_bit(kind, seed, rois, channels, height, width, size, threads):
    ours = max_pool_rois if kind == "max" else align_rois
    features, boxes = random_case(seed, rois, channels, height, width)
    one, other = features.clone().requires_grad_(), features.clone().requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, wanted = ours(one, boxes, size, 1 / 16), reference(kind, other, boxes, size, 1 / 16)
        assert torch.equal(found, wanted)
        assert torch.equal(ours(features, boxes, size, 1 / 16), wanted)  # without gradient: another way
        gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
        found.backward(gradient)
        wanted.backward(gradient)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one.grad, other.grad)


def test_halves_of_a_cell_round_away_from_zero_as_in_c():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    boxes = torch.tensor([[8.0, 8.0, 25.0, 25.0], [-8.0, -8.0, 9.0, 9.0]])  # 0.5 to 1.5 cells, and -0.5 to 0.5
    assert max_pool_rois(features, boxes, 1, 1 / 16).flatten().tolist() == [10, 5]  # cells 1 to 2, and -1 to 1


@pytest.mark.parametrize("pool", [max_pool_rois, align_rois])
def test_takes_any_memory_format_and_other_precisions(pool):
    features, boxes = random_case(1, 5, 8, 4, 6)
    wanted = pool(features, boxes, 3, 1 / 16)
    assert torch.equal(pool(features.contiguous(memory_format=torch.channels_last), boxes, 3, 1 / 16), wanted)
    assert pool(features.double(), boxes, 3, 1 / 16).dtype == torch.float64
    torch.testing.assert_close(pool(features.double(), boxes, 3, 1 / 16).float(), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("pool", [max_pool_rois, align_rois])
def test_a_map_in_half_precision_is_pooled_in_float32_with_the_boxes_as_they_are(pool, dtype, cast):
    """In bfloat16 the two boxes would be one."""
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 4, 64, generator=rng).to(dtype)
    boxes = torch.tensor([[903.0, 3.0, 960.0, 40.0], [905.0, 3.0, 960.0, 40.0]])
    assert boxes.bfloat16()[0].equal(boxes.bfloat16()[1])
    low, wide = features.clone().requires_grad_(), features.float().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=cast):
        found = pool(low, boxes, 3, 1 / 16)
    wanted = pool(wide, boxes, 3, 1 / 16)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert not torch.equal(found[0], found[1]) or pool is max_pool_rois  # whose corners are cells
    found.sum().backward()
    wanted.sum().backward()
    assert low.grad.dtype == dtype
    torch.testing.assert_close(low.grad, wide.grad.to(dtype))
