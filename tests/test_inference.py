"""From scores to detections, and the losses of all RoIs."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ohem.data.dataset import ImageRecord
from ohem.data.loading import make_sample, mirror, resize
from ohem.errors import OhemError
from ohem.inference import Candidates, Scorer, candidates_of, detect, score_and_refine, suppress, vote
from ohem.mining import _classifier, mean_loss, score_images
from ohem.models.spec import DetectionSpec, ImageSpec
from ohem.ranking import LowRankRanking, Ranking, RememberedRanking
from ohem.training.beginning import AnnotatedImages, new_detector
from shapes import make_shapes, open_shapes, small_recipe


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data", train=4, test=2)


def test_candidates_and_suppression_by_hand() -> None:
    # Two classes. RoI 0 and 1 overlap by 0.6 > 0.3 in class 1: the better stays. In class 2 RoI 1 stands alone.
    first, second = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0]
    scores = torch.tensor([[0.1, 0.8, 0.1], [0.1, 0.5, 0.4], [0.95, 0.03, 0.02]])
    boxes = torch.tensor([[first, first, first], [second, second, second], [second, second, second]])
    found = candidates_of(scores, boxes, 0.2)
    kept = suppress(found, 0.3)
    assert kept.scores.tolist() == pytest.approx([0.8, 0.4])
    assert kept.labels.tolist() == [1, 2]
    assert kept.boxes.tolist() == [first, second]
    assert suppress(found, 0.7).scores.tolist() == pytest.approx([0.8, 0.5, 0.4])
    assert suppress(found, 0.7, most=2).scores.tolist() == pytest.approx([0.8, 0.5])


def test_boxes_that_were_clipped_to_nothing_are_no_candidates() -> None:
    scores, boxes = torch.tensor([[0.0, 1.0]]), torch.tensor([[[0.0, 0, 0, 0], [5.0, 5, 5, 9]]])
    assert len(candidates_of(scores, boxes, 0.001)) == 0
    assert len(suppress(candidates_of(torch.zeros(0, 3), torch.zeros(0, 3, 4), 0.0), 0.3)) == 0


def candidates(*rows: tuple[tuple[float, float, float, float], float, int]) -> Candidates:
    boxes, scores, labels = zip(*rows, strict=True)
    return Candidates(torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(labels))


def test_voting_by_hand() -> None:
    # IoU of (0,0,10,10) with (0,0,10,6) is 0.6: it votes with weight 0.2 against 0.6. With (0,0,10,4) it is 0.4: no
    # vote. The box of another class has none either.
    voters = candidates(
        ((0, 0, 10, 10), 0.6, 1), ((0, 0, 10, 6), 0.2, 1), ((0, 0, 10, 4), 0.9, 1), ((0, 0, 10, 9), 0.9, 2)
    )
    voted = vote(voters[:1], voters, min_iou=0.5)
    assert voted.boxes.tolist() == [pytest.approx([0, 0, 10, (0.6 * 10 + 0.2 * 6) / 0.8])]
    assert voted.scores.tolist() == pytest.approx([0.6])
    # IoU of exactly 0.5 votes.
    voters = candidates(((0, 0, 10, 10), 0.5, 1), ((0, 0, 10, 5), 0.5, 1))
    assert vote(voters[:1], voters, min_iou=0.5).boxes.tolist() == [pytest.approx([0, 0, 10, 7.5])]
    # Where nobody votes with any weight, the box stays.
    voters = candidates(((0, 0, 10, 10), 0.0, 1))
    assert vote(voters, voters).boxes.tolist() == [[0, 0, 10, 10]]


def test_refining_scores_the_moved_boxes_of_the_high_scoring_candidates_once_more() -> None:
    asked = []

    def score(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every box moves right by 1 (class 1) or 2 (class 2); scores fall from box to box."""
        asked.append(boxes)
        scores = torch.tensor([[0.0, 0.9, 0.2], [0.0, 0.4, 0.05]])[: len(boxes)]
        moved = torch.stack([boxes, boxes + torch.tensor([1.0, 0, 1, 0]), boxes + torch.tensor([2.0, 0, 2, 0])], dim=1)
        return scores, moved, torch.arange(len(boxes))

    proposals = torch.tensor([[0.0, 0, 10, 10], [50.0, 0, 60, 10]])
    spec = DetectionSpec(score_threshold=0.1, refine=0.3)
    found = score_and_refine(score, proposals, spec)
    # R1: class 1 of both proposals (0.9, 0.4) and class 2 of the first (0.2). Only the first two score 0.3 or more.
    assert asked[1].tolist() == [[1, 0, 11, 10], [51, 0, 61, 10]]
    # R2: those two again, by class 1. The union has five.
    assert found.boxes.tolist() == [
        [1, 0, 11, 10], [2, 0, 12, 10], [51, 0, 61, 10], [2, 0, 12, 10], [52, 0, 62, 10],
    ]  # fmt: skip
    assert found.labels.tolist() == [1, 2, 1, 1, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.2, 0.4, 0.9, 0.4])
    assert len(asked) == 2
    assert len(score_and_refine(score, proposals, DetectionSpec(score_threshold=0.1))) == 3
    assert len(asked) == 3


@pytest.mark.parametrize("join", ["average", "pool", "nearest"])
def test_scales_are_joined(join: str, shapes: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "test"))
    recipe = small_recipe()
    detector = new_detector(recipe, images).eval()
    record = images.dataset.records[0]
    boxes = torch.from_numpy(images.proposals[record.id])
    views = [make_sample(record, boxes.numpy(), ImageSpec(shortest=s, longest=999)) for s in (72, 216)]
    with torch.no_grad():
        alone = [Scorer(detector, [view])(boxes) for view in views]
        scores, moved, source = Scorer(detector, views, join)(boxes)
    count = len(boxes)
    if join == "average":
        torch.testing.assert_close(scores, (alone[0][0] + alone[1][0]) / 2)
        torch.testing.assert_close(moved, (alone[0][1] + alone[1][1]) / 2)
        assert source.tolist() == list(range(count))
    elif join == "pool":
        torch.testing.assert_close(scores, torch.cat([alone[0][0], alone[1][0]]))
        assert source.tolist() == [*range(count), *range(count)]
    else:
        assert sorted(source.tolist()) == list(range(count))
        # Boxes of about 30 px are nearer to 224 px when enlarged three times.
        torch.testing.assert_close(scores, alone[1][0][source])
        torch.testing.assert_close(moved, alone[1][1][source])


def test_one_scale_is_the_same_however_it_is_joined(shapes: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "test"))
    detector = new_detector(small_recipe(), images)
    found = [
        detect(
            detector,
            images.dataset.records,
            images.proposals,
            ImageSpec(shortest=72, longest=96),
            DetectionSpec(join=join),
            workers=0,
        )
        for join in ("average", "pool", "nearest")
    ]
    for record in images.dataset.records:
        for other in found[1:]:
            np.testing.assert_array_equal(found[0][record.id].boxes, other[record.id].boxes)


@pytest.mark.parametrize(
    ("size", "expected"), [((500, 375), (800, 600)), ((1000, 300), (1000, 300)), ((2000, 1000), (1000, 500))]
)
def test_the_shortest_side_is_600_unless_the_longest_would_pass_1000(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    image = resize(np.zeros((size[1], size[0], 3), np.uint8), ImageSpec(shortest=600, longest=1000))
    assert image.shape == (expected[1], expected[0], 3)


def test_a_picture_one_pixel_high_survives_resizing() -> None:
    assert resize(np.zeros((1, 3000, 3), np.uint8), ImageSpec()).shape == (1, 1000, 3)


def test_boxes_follow_the_picture_when_it_is_resized_and_mirrored(shapes: Path) -> None:
    dataset, proposals = open_shapes(shapes, "train")
    record = dataset.records[0]
    spec = ImageSpec(shortest=144, longest=192)
    plain, mirrored = (make_sample(record, proposals[record.id], spec, flip=flip) for flip in (False, True))
    assert plain.image.shape == (3, 144, 192)
    assert torch.equal(mirrored.image, plain.image.flip(2))
    assert plain.target["boxes"].numpy() == pytest.approx(record.boxes * 2)
    assert plain.proposals.numpy() == pytest.approx(proposals[record.id] * 2)
    assert torch.equal(mirrored.target["boxes"], mirror(plain.target["boxes"], 192))
    torch.testing.assert_close(mirror(mirror(plain.proposals, 192), 192), plain.proposals)
    # What a box holds is the same object: the darkest-to-brightest spread inside it mirrors with it.
    x1, y1, x2, y2 = plain.target["boxes"][0].round().int().tolist()
    a, b, c, d = mirrored.target["boxes"][0].round().int().tolist()
    assert torch.equal(mirrored.image[:, b:d, a:c], plain.image[:, y1:y2, x1:x2].flip(2))


def test_detections_are_in_pixels_of_the_original(shapes: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "test"))
    recipe = small_recipe()
    detector = new_detector(recipe, images)
    spec = DetectionSpec(score_threshold=0.0, nms_iou=1.0, max_detections=0)
    found = detect(
        detector, images.dataset.records, images.proposals, ImageSpec(shortest=216, longest=288), spec, workers=0
    )
    for record in images.dataset.records:
        one = found[record.id]
        assert len(one.boxes) == 3 * len(images.proposals[record.id])
        # An untrained box predictor hardly moves its proposals.
        nearest = np.abs(one.boxes[:, None] - images.proposals[record.id][None]).max(axis=2).min(axis=1)
        assert nearest.max() < 2
    assert detector.training
    gone = dataclasses.replace(images.dataset.records[0], path=shapes / "gone.png")
    with pytest.raises(OhemError, match=r"gone\.png"):
        detect(detector, [gone], images.proposals, ImageSpec(shortest=216, longest=288), spec, workers=0)
    assert detector.training


def test_scoring_all_rois_of_images_is_the_ranking_without_dropout(shapes: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "test"))
    recipe = small_recipe("detector.head.dropout=0.5")
    detector = new_detector(recipe, images)
    scored = list(score_images(detector, recipe.detector, images.dataset.records, images.proposals, workers=0))
    for image, record in zip(scored, images.dataset.records, strict=True):
        assert image.rois.boxes.shape == (len(images.proposals[record.id]) + len(record.boxes), 4)
        assert image.rois.boxes[-len(record.boxes) :].numpy() == pytest.approx(record.boxes, abs=1e-3)
        sample = make_sample(record, images.proposals[record.id], recipe.detector.image)
        features = detector.eval().features([sample.image])
        rois = [detector.label(sample.proposals, sample.target)]
        torch.testing.assert_close(image.losses.total, detector.rank(features, rois, dropout=False)[0].total)
    totals = torch.cat([image.losses.total for image in scored])
    assert mean_loss(iter(scored)) == pytest.approx(float(totals.mean()), rel=1e-5)


@pytest.mark.parametrize("ranking", [LowRankRanking(rank=4, share=0.0, refresh=1000), RememberedRanking(share=0.0)])
def test_scoring_all_rois_is_exact_whatever_training_ranks_by(ranking: Ranking, shapes: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "test"))
    recipe = small_recipe()
    detector = new_detector(recipe, images)

    def losses() -> torch.Tensor:
        scored = score_images(detector, recipe.detector, images.dataset.records, images.proposals, workers=0)
        return torch.cat([image.losses.total for image in scored])

    exact = losses()
    detector.rank_by(ranking)
    assert all(torch.equal(losses(), exact) for _ in range(2))
    assert detector.thin_head is None or not detector.thin_head.passes
    assert detector.loss_memory is None or not len(detector.loss_memory.get_extra_state()["images"])


def test_boxes_are_classified_where_the_detector_is() -> None:
    """On a GPU, the boxes of an image's annotations are still on the CPU."""
    with FakeTensorMode():
        detector: Any = SimpleNamespace(
            delta_mean=torch.zeros(1, device="cuda"), score_rois=lambda feature, boxes, size: (boxes, None)
        )
        sample: Any = SimpleNamespace(image=torch.zeros(3, 9, 12, dtype=torch.uint8), scale=(2.0, 2.0))
        assert _classifier(detector, detector, sample)(torch.ones(1, 4)).device.type == "cuda"


def test_ignored_rois_do_not_count_in_the_mean_loss(shapes: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "test"))
    recipe = small_recipe()
    detector = new_detector(recipe, images)
    old = images.dataset.records[0]
    record = ImageRecord(**{**vars(old), "difficult": np.array([True, False])})
    (scored,) = score_images(detector, recipe.detector, [record], images.proposals, workers=0)
    counted = scored.rois.labels >= 0
    assert 0 < int((~counted).sum()) < len(counted)
    assert mean_loss(iter([scored])) == pytest.approx(float(scored.losses.total[counted].mean()), rel=1e-5)


def test_workers_start_after_opencv_has_used_its_threads(shapes: Path) -> None:
    # In a child forked while OpenCV had a pool of threads, touching the pool waited for ever.
    script = f"""
import cv2, numpy as np
cv2.setNumThreads(4)
cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 5)
from ohem.data.loading import Draw, Samples, load_batches
from ohem.models.spec import ImageSpec
from shapes import open_shapes
import os
import subprocess
import sys
from pathlib import Path
dataset, proposals = open_shapes(Path({str(shapes)!r}), "train")
samples = Samples(dataset.records, proposals, ImageSpec(shortest=720, longest=960))
print(len(list(load_batches(samples, [[Draw(i)] for i in range(4)], workers=2))), cv2.getNumThreads())
"""
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True, env=where
    )
    assert told.stdout.split() == ["4", "4"]
