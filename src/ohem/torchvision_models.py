"""OHEM for torchvision's two-stage detectors, in the training script one has.

torchvision's seam for choosing RoIs, ``RoIHeads.select_training_samples``, cannot see features, and so cannot rank.
Here the model's ``RoIHeads`` becomes an instance of a subclass that holds on to the features while it runs forward; its
``RegionProposalNetwork``, if that is wanted too, one that holds on to the anchors. Nothing is registered, wrapped or
copied: parameters, state-dict keys, evaluation and the names of the losses stay.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD

from ohem.losses import TORCHVISION_BETA, RoiLosses, anchor_losses, at_least_float32, require_finite, roi_losses
from ohem.models.fast_rcnn import KnownLosses
from ohem.models.proposal_network import ProposalNetwork
from ohem.models.roi_head import read_only
from ohem.rois import Rois, greatest_iou
from ohem.samplers import Sampler, checked, require_count

NOTHING_TO_CHOOSE = {
    RetinaNet: "it classifies all anchors, and focal loss weighs the easy ones down; train it as it is",
    FCOS: "it classifies all points, and focal loss weighs the easy ones down; train it as it is",
    SSD: "it mines hard background itself, as much for each foreground anchor as its positive_fraction says; set that",
}
"""Why torchvision's one-stage detectors take no sampler, and what to do."""

Samples = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
"""Of each image: boxes (B, 4), index of the matched object (B,), labels (B,), regression targets (B, 4)."""


def use_sampler(model: nn.Module, sampler: Sampler, *, ranking_chunk: int = 512) -> None:
    """Let ``sampler`` choose the RoIs on which a torchvision detector trains, from now on.

    For ``fasterrcnn_*``, ``maskrcnn_*``, ``keypointrcnn_*`` and every other model that contains torchvision's
    ``RoIHeads``, also inside ``DistributedDataParallel`` or ``torch.compile``. The model is changed in place. Calling
    it again exchanges the sampler; :func:`remove_sampler` takes it off.

    The candidates of an image are its proposals and annotated boxes, labelled by torchvision; those between its two
    thresholds are ignored. The ranking loss of a RoI is cross entropy plus smooth L1 (beta 1/9) summed over the four
    deltas, in float32. torchvision then computes its own losses of the chosen RoIs: it divides both the class and the
    box loss by the number of RoIs chosen in the batch, so ``loss_classifier + loss_box_reg`` is the mean of their
    ranking losses (dropout and BatchNorm aside). Mask and keypoint losses train on the chosen foreground. A batch of
    which nothing is chosen has losses of zero. The model's ``box_batch_size_per_image`` and ``box_positive_fraction``
    are without effect; the sampler's settings take their place.

    While RoIs are ranked, BatchNorm in the heads runs with its running statistics and does not update them; dropout is
    the sampler's choice. Samplers draw from torch's default CPU generator.

    Args:
        model: in training or evaluation mode. Box predictors must be class-specific, as torchvision's loss expects;
            heads with a loss of their own may have class-agnostic ones.
        sampler: any of :mod:`ohem.samplers` and :mod:`ohem.rivals`, or one of your own.
        ranking_chunk: RoIs scored at once; bounds the memory that ranking needs.

    Raises:
        ValueError: the model has no ``RoIHeads`` (of torchvision's one-stage detectors the text says why they need no
            sampler) or ones that choose by a method of their own, ``ranking_chunk`` is less than 1, or the sampler cannot
            be called. In a later training step: see :class:`ohem.losses.NonFiniteLossError` and
            :func:`ohem.samplers.checked`.
    """
    require_count("ranking_chunk", ranking_chunk)
    _require_sampler(sampler)
    for heads in _parts(model, RoIHeads):
        _require_no_choice_of_its_own(heads)
    for heads in _parts(model, RoIHeads):
        _let_mine(heads, MiningRoIHeads, Mining(sampler, ranking_chunk))


def use_rpn_sampler(model: nn.Module, sampler: Sampler) -> None:
    """Let ``sampler`` choose the anchors on which the region proposal network of a detector trains, from now on.

    The paper has no region proposal network; this is its idea, carried over. The candidates of an image are all its
    anchors, labelled by torchvision: 1 for an object, 0 for background, ignored between the two thresholds. An
    anchor's loss is that of its objectness plus, for objects, smooth L1 (beta 1/9) summed over the four deltas. These
    are known without another pass, so ranking costs little, and ``loss_objectness + loss_rpn_box_reg`` is the mean over
    the anchors chosen in the batch. ``rpn_batch_size_per_image`` and ``rpn_positive_fraction`` are without effect.

    Args:
        model: changed in place. Calling it again exchanges the sampler; :func:`remove_sampler` takes it off.
        sampler: as for :func:`use_sampler`. A large image has a quarter of a million anchors, and to remove
            near-duplicates among all of them, as :class:`ohem.rivals.StratifiedSampler` does, takes minutes.

    Raises:
        ValueError: the model has no ``RegionProposalNetwork`` or is a detector of ohem's, which has a setting for it, or
            the sampler cannot be called. In a later training step: as for :func:`use_sampler`.
    """
    _require_sampler(sampler)
    for rpn in _parts(model, RegionProposalNetwork):
        if isinstance(rpn, ProposalNetwork):
            raise ValueError("model: found a detector of ohem's; allowed: detector.rpn_sampler = sampler")
        _let_mine(rpn, MiningRPN, Mining(sampler))


def _require_no_choice_of_its_own(heads: nn.Module) -> None:
    kind: Any = type(heads)
    if isinstance(heads, MiningRoIHeads):  # only the sampler is exchanged
        return
    if "select_training_samples" in vars(heads) or (
        kind.select_training_samples is not RoIHeads.select_training_samples
    ):
        raise ValueError(
            f"model: found {kind.__name__} with a select_training_samples of its own; allowed: torchvision's, in whose"
            " place the sampler chooses"
        )


def _require_sampler(sampler: object) -> None:
    if not callable(sampler) or isinstance(sampler, type):
        raise ValueError(f"sampler: found {sampler!r}; allowed: an object to call, such as HardSampler()")


def boxes_in_float32(model: nn.Module) -> None:
    """Keep anchors, proposals and annotated boxes in float32 while a detector trains under ``torch.autocast``.

    torchvision gives them the precision of its feature maps: in bfloat16, coordinates beyond 256 pixels become even
    numbers and beyond 512 multiples of four, in float16 beyond 512 halves. Overlaps, labels and regression targets are
    then of such boxes. Here the region proposal network gets its maps, and gives its deltas, in float32; its
    convolutions are cast as before. Without autocast nothing changes.

    Args:
        model: changed in place, by two hooks; parameters and state-dict keys stay.

    Raises:
        ValueError: the model has no ``RegionProposalNetwork``.
    """
    for rpn in _parts(model, RegionProposalNetwork):
        rpn.register_forward_pre_hook(_widen_features)
        rpn.head.register_forward_hook(_widen_outputs)


def _widen_features(rpn: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    images, features, *rest = arguments
    return images, {name: _wide(each) for name, each in features.items()}, *rest


def _widen_outputs(head: nn.Module, _: Any, outputs: tuple[list[Tensor], list[Tensor]]) -> tuple[list[Tensor], ...]:
    return tuple([_wide(each) for each in part] for part in outputs)


def _wide(values: Tensor) -> Tensor:
    """Values in float32 under autocast; a model that is in half precision itself has its own."""
    return at_least_float32(values) if torch.is_autocast_enabled(values.device.type) else values


def remove_sampler(model: nn.Module) -> None:
    """Give torchvision's own random choice of RoIs and anchors back; a model without a sampler stays as it is.

    Raises:
        ValueError: the model has neither ``RoIHeads`` nor a ``RegionProposalNetwork``, or another class was laid over
            them since.
    """
    mined = [module for module in model.modules() if isinstance(module, _Mined)]
    if not mined:
        _parts(model, RoIHeads, RegionProposalNetwork)
    for module in mined:
        if type(module).__bases__[0] not in (MiningRoIHeads, MiningRPN):
            raise ValueError(
                f"model: found {type(module).__name__}, laid over the sampler since (by fully_shard); allowed: to remove"
                " the sampler before that"
            )
    for module in mined:
        module.__class__ = module.torchvision_class()
        del module.mining


def _parts(model: nn.Module, *kinds: type) -> list[Any]:
    found = [module for module in model.modules() if isinstance(module, kinds)]
    if not found:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(
            f"model: found {_described(model)}, without {names}; allowed: torchvision's two-stage detectors"
            f" (fasterrcnn_*, maskrcnn_*, keypointrcnn_*) and models that contain torchvision's {names}"
        )
    return found


def _described(model: nn.Module) -> str:
    """The name of the detector, also inside a wrapper, and why it takes no sampler, where that is known."""
    for module in model.modules():
        for kind, reason in NOTHING_TO_CHOOSE.items():
            if isinstance(module, kind):
                return f"{type(module).__name__} ({reason})"
    return type(model).__name__


def _let_mine(module: Any, kind: type, mining: "Mining") -> None:
    if not isinstance(module, kind):
        module.__class__ = _mined(kind, module.__class__)
    module.mining = mining


@dataclass(frozen=True)
class Mining:
    """The sampler and its settings, in one plain object, so that a sampler with weights is no part of the model."""

    sampler: Sampler
    ranking_chunk: int = 512


@dataclass(frozen=True)
class Scene:
    """What ``RoIHeads.forward`` knows and ``select_training_samples`` does not.

    Attributes:
        features: feature maps of the batch, by name.
        image_shapes: height and width of each image, without padding.
    """

    features: dict[str, Tensor]
    image_shapes: list[tuple[int, int]]


class NothingChosenError(Exception):
    """The sampler chose no RoI of any image; torchvision's losses are a mean over them."""


class _Mined:
    """First base of the classes made at run time: one of the two below, and the class the module had before."""

    mining: Mining

    @classmethod
    def torchvision_class(cls) -> Any:
        """The class that the module had before."""
        return cls.__bases__[1]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle and copy by the two bases: a class made at run time has no address."""
        return _new_mined, type(self).__bases__, self.__getstate__()


@cache
def _mined(kind: Any, before: Any) -> Any:
    return type(f"Mining{before.__name__}", (kind, before), {})


def _new_mined(kind: Any, before: Any) -> Any:
    made = _mined(kind, before)
    return made.__new__(made)


class MiningRoIHeads(_Mined, RoIHeads):  # type: ignore[misc]  # torchvision has no types
    """``RoIHeads`` with a sampler. Made by :func:`use_sampler`, never constructed."""

    _scene: Scene | None = None

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
        *rest: Any,
        **more: Any,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's, with what a subclass's takes besides. The features are let go of on return."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets, *rest, **more)  # type: ignore[no-any-return]
        self._scene = Scene(features, image_shapes)
        try:
            result: tuple[list[dict[str, Tensor]], dict[str, Tensor]]
            result = super().forward(features, proposals, image_shapes, targets, *rest, **more)
            return result
        except NothingChosenError:
            return [], self._zero_losses(features)
        finally:
            del self._scene

    # Ranking has no fixed shapes and switches modules' modes: nothing for a compiler to gain, much to trip over.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def select_training_samples(self, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None) -> Samples:
        """As torchvision's, with all candidates handed to the sampler in place of a random choice."""
        self.check_targets(targets)
        assert targets is not None
        truth = [target["boxes"].to(proposals[0].dtype) for target in targets]
        candidates = self.add_gt_proposals(proposals, truth)
        matches, labels = self.assign_targets_to_proposals(candidates, truth, [t["labels"] for t in targets])
        rois = [self._rois(*image) for image in zip(candidates, truth, matches, labels, strict=True)]
        score = partial(self._score, self._scene, candidates, rois)
        chosen = checked(self.mining.sampler(rois, score, torch.default_generator), rois)
        if not sum(map(len, chosen)):
            raise NothingChosenError
        deltas = [image.deltas.to(proposals[0].dtype) for image in rois]
        return _take(candidates, chosen), _take(matches, chosen), _take(labels, chosen), _take(deltas, chosen)

    def _rois(self, boxes: Tensor, truth: Tensor, match: Tensor, labels: Tensor) -> Rois:
        """The candidates of one image as samplers know them; in float32 where automatic casting made them less."""
        foreground, deltas = labels > 0, torch.zeros_like(boxes)
        deltas[foreground] = self.box_coder.encode_single(truth[match[foreground]], boxes[foreground])
        return Rois(
            at_least_float32(boxes), labels, at_least_float32(greatest_iou(boxes, truth)), at_least_float32(deltas)
        )

    def _score(
        self, scene: Scene | None, candidates: list[Tensor], rois: list[Rois], *, dropout: bool = True
    ) -> list[RoiLosses]:
        """The read-only pass: the loss of all RoIs of all images, in chunks."""
        if scene is None:
            raise RuntimeError(
                "roi_heads.select_training_samples: found a call from outside the model, which has no features to rank"
                " by; allowed, for a loss on validation data: the model in training mode under torch.no_grad(), or"
                " ohem.remove_sampler(model) before"
            )
        boxes = torch.cat(candidates)
        image = torch.cat([torch.full_like(each.labels, i) for i, each in enumerate(rois)])
        logits, deltas = [], []
        with read_only(self, dropout=dropout):
            for chunk in torch.split(torch.arange(len(boxes), device=boxes.device), self.mining.ranking_chunk):
                # Of every chunk the whole batch is shown: pooling takes an image's place in the list for its number,
                # and fixes its scales for good by the image shapes it is shown first.
                parts = [boxes[chunk[image[chunk] == i]] for i in range(len(rois))]
                pooled = self.box_roi_pool(scene.features, parts, scene.image_shapes)
                outputs = self.box_predictor(self.box_head(pooled))
                logits.append(outputs[0])
                deltas.append(outputs[1])
            sizes = [len(each) for each in rois]
            outputs_of = zip(*(torch.split(torch.cat(each), sizes) for each in (logits, deltas)), rois, strict=True)
            losses = [roi_losses(*image, beta=TORCHVISION_BETA) for image in outputs_of]
        require_finite(losses, rois)
        return losses

    def _zero_losses(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Zero, and a gradient of zero for whatever takes part otherwise, which DistributedDataParallel waits for."""
        zero = torch.stack([each.flatten()[:0].sum() for each in (*features.values(), *self.parameters())]).sum()
        names = ["loss_classifier", "loss_box_reg"]
        names += ["loss_mask"] * self.has_mask() + ["loss_keypoint"] * self.has_keypoint()
        return {name: zero.clone() for name in names}


class MiningRPN(_Mined, RegionProposalNetwork):  # type: ignore[misc]
    """``RegionProposalNetwork`` with a sampler. Made by :func:`use_rpn_sampler`, never constructed."""

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's. Anchors and their overlaps are kept until :meth:`compute_loss`, which follows."""
        overlaps = [greatest_iou(boxes, target["boxes"]) for boxes, target in zip(anchors, targets, strict=True)]
        self._anchors = list(zip(anchors, overlaps, strict=True))
        result: tuple[list[Tensor], list[Tensor]] = super().assign_targets_to_anchors(anchors, targets)
        return result

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """torchvision's losses of the anchors that the sampler chose of all."""
        rois = [
            Rois(
                at_least_float32(boxes),
                label.long(),
                at_least_float32(iou),
                torch.where(label[:, None] > 0, at_least_float32(target), 0.0),
            )
            for (boxes, iou), label, target in zip(self._anchors, labels, regression_targets, strict=True)
        ]
        del self._anchors
        sizes = [len(image) for image in rois]
        scored = (torch.split(each.detach(), sizes) for each in (objectness.flatten(), pred_bbox_deltas))
        losses = [anchor_losses(*image) for image in zip(*scored, rois, strict=True)]
        require_finite(losses, rois, "anchor")
        chosen = checked(self.mining.sampler(rois, KnownLosses(losses), torch.default_generator), rois, "anchor")
        if not sum(map(len, chosen)):
            return objectness[:0].sum(), pred_bbox_deltas[:0].sum()
        trained = [
            torch.full_like(label, -1).index_copy(0, index, label[index])
            for label, index in zip(labels, chosen, strict=True)
        ]
        own = self.fg_bg_sampler  # type: ignore[has-type]
        self.fg_bg_sampler = _every_labelled
        try:
            result: tuple[Tensor, Tensor]
            result = super().compute_loss(objectness, pred_bbox_deltas, trained, regression_targets)
            return result
        finally:
            self.fg_bg_sampler = own


def _every_labelled(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """In place of torchvision's sampler: all foreground, all background."""
    return [label > 0 for label in labels], [label == 0 for label in labels]


def _take(values: Sequence[Tensor], chosen: Sequence[Tensor]) -> list[Tensor]:
    return [value[index] for value, index in zip(values, chosen, strict=True)]
