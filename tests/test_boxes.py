"""Regression targets and their normalisation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from ohem.boxes import DeltaStats, decode_deltas, encode_deltas

coordinates = st.floats(-1000, 1000, width=32)
sizes = st.floats(0.5, 500, width=32)
boxes = st.tuples(coordinates, coordinates, sizes, sizes).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


def random_boxes(count, seed, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * 500
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=rng) * 300], dim=1).to(dtype)


def test_a_hand_worked_target():
    box, target = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 10, 25, 20]])
    # centres (5, 10) and (15, 15); sizes (10, 20) and (20, 10)
    assert encode_deltas(box, target).tolist() == [pytest.approx([1.0, 0.25, math.log(2), math.log(0.5)])]
    assert decode_deltas(box, torch.tensor([[1.0, 0.25, math.log(2), math.log(0.5)]])).tolist() == [
        pytest.approx([5, 10, 25, 20], abs=1e-5)
    ]


def test_no_move_is_zero():
    some = random_boxes(20, 0)
    assert encode_deltas(some, some).abs().max() == 0
    assert torch.allclose(decode_deltas(some, torch.zeros(20, 4)), some, atol=1e-4)


@given(st.lists(st.tuples(boxes, boxes), max_size=10))
@settings(deadline=None)
def test_decoding_is_the_inverse_of_encoding(pairs):
    # Within the log ratio that decoding believes, which 500 / 0.5 passes.
    near = [
        (box, target)
        for box, target in pairs
        if max((target[2] - target[0]) / (box[2] - box[0]), (target[3] - target[1]) / (box[3] - box[1])) < 60
    ]
    box = torch.tensor([box for box, _ in near], dtype=torch.float64).view(-1, 4)
    target = torch.tensor([target for _, target in near], dtype=torch.float64).view(-1, 4)
    assert torch.allclose(decode_deltas(box, encode_deltas(box, target)), target, atol=1e-8)


def test_parity_with_torchvisions_box_coder():
    box, target, deltas = random_boxes(200, 1), random_boxes(200, 2), torch.randn(200, 4)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    assert torch.allclose(encode_deltas(box, target), coder.encode_single(target, box), atol=1e-5)
    deltas[0] = 50.0  # both cut the log ratio at log(1000 / 16)
    assert torch.allclose(decode_deltas(box, deltas), coder.decode_single(deltas, box), rtol=1e-5, atol=1e-3)


def test_parity_with_torchvisions_weights():
    box, target = random_boxes(50, 3), random_boxes(50, 4)
    stats = DeltaStats.fixed(2, (0.1, 0.1, 0.2, 0.2))
    ours = stats.normalize(encode_deltas(box, target), torch.ones(50, dtype=torch.int64))
    assert torch.allclose(ours, BoxCoder((10.0, 10.0, 5.0, 5.0)).encode_single(target, box), atol=1e-4)


def test_parity_with_the_papers_code_on_inclusive_boxes():
    """Widths there are x2 - x1 + 1, of 1-based inclusive corners; here (a, b) has become (a - 1, b)."""
    rng = np.random.default_rng(0)
    first = rng.integers(1, 300, (2, 100, 2)).astype(np.float64)
    inclusive = np.concatenate([first, first + rng.integers(0, 200, (2, 100, 2))], axis=2)
    width, height = (inclusive[:, :, 2 + k] - inclusive[:, :, k] + 1.0 for k in (0, 1))
    x, y = inclusive[:, :, 0] + 0.5 * width, inclusive[:, :, 1] + 0.5 * height
    papers = np.stack(
        [
            (x[1] - x[0]) / width[0],
            (y[1] - y[0]) / height[0],
            np.log(width[1] / width[0]),
            np.log(height[1] / height[0]),
        ],
        axis=1,
    )
    box, target = torch.from_numpy(inclusive - [1, 1, 0, 0])
    assert np.allclose(encode_deltas(box, target).numpy(), papers, atol=1e-12)


def test_a_box_can_move_in_several_ways():
    some, deltas = random_boxes(7, 5), torch.randn(7, 3, 4) / 4
    moved = decode_deltas(some, deltas)
    assert moved.shape == (7, 3, 4)
    for way in range(3):
        assert torch.equal(moved[:, way], decode_deltas(some, deltas[:, way]))


def test_wild_deltas_stay_finite():
    moved = decode_deltas(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 1e4, -1e4]]))
    assert moved.isfinite().all()
    assert (moved[0, 2] - moved[0, 0]).item() == pytest.approx(10 * 1000 / 16)


def test_no_boxes():
    none = torch.zeros(0, 4)
    assert encode_deltas(none, none).shape == (0, 4)
    assert decode_deltas(none, none).shape == (0, 4)
    assert decode_deltas(none, torch.zeros(0, 3, 4)).shape == (0, 3, 4)


# -------------------------------------------------------------------------------------------------------- DeltaStats


def examples(num_classes=3, images=6, seed=0):
    """Per image deltas (F, 4) and labels (F,) of classes with means and spreads of their own."""
    rng = torch.Generator().manual_seed(seed)
    for image in range(images):
        count = 5 * image  # the first image has no foreground
        labels = torch.randint(1, num_classes + 1, (count,), generator=rng)
        deltas = torch.randn(count, 4, generator=rng) * labels[:, None] / 10 + torch.tensor([0.0, 0.1, -0.5, 2.0])
        yield deltas, labels


def test_fixed_statistics_are_the_same_for_every_class():
    stats = DeltaStats.fixed(20)
    assert stats.mean.tolist() == [[0.0] * 4] * 21
    assert torch.equal(stats.std, torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(21, 1))


def test_empirical_statistics_are_numpys_mean_and_std_per_class():
    stats = DeltaStats.empirical(3, examples())
    deltas = np.concatenate([deltas.numpy() for deltas, _ in examples()]).astype(np.float64)
    labels = np.concatenate([labels.numpy() for _, labels in examples()])
    assert stats.mean.dtype == stats.std.dtype == torch.float32
    for name in (1, 2, 3):
        assert np.allclose(stats.mean[name].numpy(), deltas[labels == name].mean(axis=0), atol=1e-6)
        assert np.allclose(stats.std[name].numpy(), deltas[labels == name].std(axis=0), atol=1e-6)


def test_they_normalise_their_own_examples_to_mean_0_and_std_1():
    stats = DeltaStats.empirical(3, examples())
    deltas = torch.cat([deltas for deltas, _ in examples()])
    labels = torch.cat([labels for _, labels in examples()])
    for name in (1, 2, 3):
        normal = stats.normalize(deltas, labels)[labels == name]
        assert normal.mean(dim=0).abs().max() < 1e-5
        assert (normal.std(dim=0, correction=0) - 1).abs().max() < 1e-5


def test_a_class_with_too_little_to_tell_keeps_the_fixed_statistics():
    several = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.3, 0.1, 0.1, 0.0]])
    one, equal = several[:1], several[:1].repeat(5, 1)
    groups = [(several, 1), (one, 2), (equal, 3)]
    stats = DeltaStats.empirical(4, [(deltas, torch.full((len(deltas),), name)) for deltas, name in groups])
    fixed = DeltaStats.fixed(4)
    assert torch.allclose(stats.mean[1], several.mean(dim=0))
    for name in (0, 2, 3, 4):  # background, one RoI, no spread, none at all
        assert torch.equal(stats.mean[name], fixed.mean[name])
        assert torch.equal(stats.std[name], fixed.std[name])


def test_no_examples_at_all():
    assert torch.equal(DeltaStats.empirical(2, []).std, DeltaStats.fixed(2).std)


def test_a_small_spread_around_a_large_mean_is_not_lost():
    deltas = 100 + 0.001 * torch.randn(1000, 4, dtype=torch.float64)
    stats = DeltaStats.empirical(1, [(deltas, torch.ones(1000, dtype=torch.int64))])
    assert np.allclose(stats.std[1].numpy(), deltas.numpy().std(axis=0), rtol=1e-3)
