"""One typed recipe. Unknown fields and wrong values are refused, with the allowed ones named."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ohem.data.rules import BadBoxes, OtherClasses, as_names, quoted
from ohem.errors import OhemError, did_you_mean
from ohem.models.fast_rcnn import Mining
from ohem.models.products import FloatType
from ohem.models.spec import (
    DETECTORS,
    RPN_IN_USE,
    TORCHVISION_KINDS,
    AnyDetectorSpec,
    DetectorSpec,
    Spec,
    TorchvisionSpec,
)
from ohem.ranking import ExactRanking, HalfRanking, LowRankRanking, Ranking, RememberedRanking, precision_of
from ohem.recipes.files import apply_override, built_in_recipes, find_recipe, join_values, read_values
from ohem.recipes.kinds import Kinds
from ohem.reweighting import FocalLoss, GradientHarmonized, LogLoss, Reweighting
from ohem.rivals import IoUBalancedSampler, QuotaSampler, RankSampler, StratifiedSampler
from ohem.samplers import AllSampler, HardSampler, RandomSampler, Sampler, ranks_together

SAMPLERS: Kinds[Sampler] = Kinds(
    {
        "hard": HardSampler,
        "random": RandomSampler,
        "all": AllSampler,
        "iou_balanced": IoUBalancedSampler,
        "rank": RankSampler,
        "stratified": StratifiedSampler,
        "quota": QuotaSampler,
    }
)
LOSSES: Kinds[Reweighting] = Kinds({"log": LogLoss, "focal": FocalLoss, "ghm": GradientHarmonized})

RANKINGS: Kinds[Ranking] = Kinds(
    {"exact": ExactRanking, "half": HalfRanking, "low_rank": LowRankRanking, "remembered": RememberedRanking}
)

SamplerField = Annotated[Sampler, PlainValidator(SAMPLERS.read), PlainSerializer(SAMPLERS.write)]
LossField = Annotated[Reweighting, PlainValidator(LOSSES.read), PlainSerializer(LOSSES.write)]
RankingField = Annotated[Ranking, PlainValidator(RANKINGS.read), PlainSerializer(RANKINGS.write)]


def _named_detector(value: Any) -> Any:
    """A detector from its name, ``fasterrcnn_lite0``, or ``{kind: fasterrcnn_lite0, image: {shortest: 320}}``.

    torchvision's names stay as they are; that of a built-in recipe stands for the detector of that recipe.
    """
    options = {"kind": value} if isinstance(value, str) else value
    if not isinstance(options, Mapping) or "kind" not in options or options["kind"] in TORCHVISION_KINDS:
        return options
    kind, rest = options["kind"], {key: part for key, part in options.items() if key != "kind"}
    if kind in built_in_recipes():
        return join_values(read_values(find_recipe(str(kind)))["detector"], rest)
    if isinstance(kind, str) and kind.startswith(("maskrcnn_", "keypointrcnn_")):
        raise ValueError(
            f"kind: found {kind!r}; allowed: {', '.join(TORCHVISION_KINDS)}; masks and keypoints are not read from data"
            " sets here, but ohem.use_sampler takes such models in a training script of yours"
        )
    hint = did_you_mean(kind, [*TORCHVISION_KINDS, *built_in_recipes()])
    raise ValueError(
        f"kind: found {quoted(kind)}{hint}; allowed: {', '.join(TORCHVISION_KINDS)}, or the name of a built-in recipe"
    )


DetectorField = Annotated[AnyDetectorSpec, BeforeValidator(_named_detector)]


class DataSpec(Spec):
    """What of the data set is used, and how images are varied.

    Attributes:
        fraction: the share of the training images that is used, drawn at random from the recipe's seed; smaller shares
            of the same seed are parts of larger ones.
        holdout: a share of the training images that is not trained on and serves as the validation split, where none
            is named. The same images whatever the seed.
        classes: the class list in order; None takes the data set's own.
        other_classes: objects of classes that are not in the list: ``error`` refuses the data set, ``drop`` leaves
            them out and says how many.
        bad_boxes: boxes that are reversed, empty or outside their image: ``error`` or ``drop``, likewise.
        flip: mirror images at random, each with probability a half.
    """

    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    classes: tuple[str, ...] | None = None
    other_classes: OtherClasses = "error"
    bad_boxes: BadBoxes = "error"
    flip: bool = True


class OptimizerSpec(Spec):
    """SGD as in the paper, or AdamW.

    Attributes:
        kind: ``sgd`` with momentum, or ``adamw``.
        lr: the learning rate after warm-up, before the first step of the schedule.
        momentum: of SGD.
        weight_decay: of weights; biases have none.
        bias_lr_factor: biases learn this many times as fast; 2 in the authors' code.
        backbone_lr_factor: the backbone learns this many times as fast; below 1 for backbones that are to change less than the new layers.
        clip_norm: gradients with a larger norm are scaled down to it; None: not.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.001
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 0.0005
    bias_lr_factor: PositiveFloat = 2.0
    backbone_lr_factor: PositiveFloat = 1.0
    clip_norm: PositiveFloat | None = None


class ScheduleSpec(Spec):
    """The learning rate over the iterations.

    Attributes:
        kind: ``step`` multiplies it by ``gamma`` every ``step_every`` iterations; ``cosine`` brings it to 0.
        step_every: iterations between two falls of ``step``.
        gamma: the factor of each fall.
        warmup: iterations over which it rises linearly from a tenth.
    """

    kind: Literal["step", "cosine"] = "step"
    step_every: PositiveInt = 30_000
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: NonNegativeInt = 0

    def factor(self, iteration: int, iterations: int) -> float:
        """What the learning rate is multiplied by in this iteration (0-based).

        Deliberately free of state: a resumed run needs nothing but its iteration.
        """
        warm = min(1.0, 0.1 + 0.9 * iteration / self.warmup) if self.warmup else 1.0
        if self.kind == "step":
            return warm * float(self.gamma ** (iteration // self.step_every))
        return warm * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


class EvaluationSpec(Spec):
    """How the model is measured during training, when there is a validation split.

    Attributes:
        metric: ``voc07`` (11-point), ``voc12`` (area), or ``coco`` (AP over IoU 0.5 to 0.95).
        every: iterations between two measurements; 0 measures at the end only.
    """

    metric: Literal["voc07", "voc12", "coco"] = "voc07"
    every: NonNegativeInt = 0


class Recipe(Spec):
    """Everything that decides a run, apart from the data.

    Attributes:
        detector: what is trained: Fast R-CNN, of parts (see :class:`ohem.models.spec.DetectorSpec`); Faster R-CNN, which
            is that with a region proposal network; or one of torchvision's, by name (see
            :class:`ohem.models.spec.TorchvisionSpec`). The name of a built-in recipe stands for its detector:
            ``fasterrcnn_lite0``. Options beside a name: ``{kind: fasterrcnn_lite0, image: {shortest: 320}}``.
        sampler: which RoIs train: ``hard`` (OHEM), ``random`` (Fast R-CNN's heuristic), ``all``, or a rival:
            ``iou_balanced``, ``rank``, ``stratified``, ``quota``; with options: ``{kind: hard, nms_iou: 0.5}``.
        rpn_sampler: which anchors of a region proposal network train, as for ``sampler``; None: 256 at random, half of them
            on objects where there are so many, as Faster R-CNN does.
        loss: what is minimised over the chosen RoIs: ``log`` (the paper's), or, made for ``sampler=all``, ``focal`` or
            ``ghm``; with options: ``{kind: focal, gamma: 1.0}``.
        mining: ``read_only`` or ``loss_layer``, the two forms of section 4.2 with the same gradients: see
            :class:`ohem.models.fast_rcnn.FastRCNN`. The second is slower, and there to compare.
        ranking: of the read-only pass: ``exact``, or for less time ``half``, ``low_rank`` or ``remembered``, with
            options: see :mod:`ohem.ranking`.
        data: see :class:`DataSpec`.
        optimizer: see :class:`OptimizerSpec`.
        schedule: see :class:`ScheduleSpec`.
        evaluation: see :class:`EvaluationSpec`.
        iterations: steps of the optimizer.
        images_per_step: images of a step of the optimizer, N in the paper.
        accumulate: run the N images one after the other and add up their gradients, as the paper does for VGG16, for
            less memory; False runs them in one forward pass.
        precision: of the network's passes in training, by autocast; weights, losses and boxes stay in float32.
            ``float16`` scales its loss, and skips and counts the steps that overflow. See
            :class:`ohem.training.precision.Precision`.
        ema: decay of an exponential moving average of the weights, such as 0.9998, which is then what is validated and
            saved; None: the weights themselves. See :func:`ohem.training.averaging.weight_average`.
        seed: all randomness follows from it.
        init_from: start from another run (its folder, or a weights file); classes are matched by name.
        log_every: iterations between two records of the log.
        all_rois_every: iterations after which a sampler that does not rank has the loss over all RoIs measured.
        checkpoint_every: iterations between two checkpoints, from which ``ohem train --resume`` goes on.
        snapshot_every: iterations after which the weights are kept for good, in ``snapshots/``; 0: never.
    """

    detector: DetectorField = DetectorSpec()
    sampler: SamplerField = HardSampler()
    rpn_sampler: SamplerField | None = None
    loss: LossField = LogLoss()
    mining: Mining = "read_only"
    ranking: RankingField = ExactRanking()
    data: DataSpec = DataSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    iterations: PositiveInt = 80_000
    images_per_step: PositiveInt = 2
    accumulate: bool = False
    precision: FloatType = "float32"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    init_from: Path | None = None
    log_every: PositiveInt = 20
    all_rois_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 1000
    snapshot_every: NonNegativeInt = 0

    @model_validator(mode="after")
    def _only_the_read_only_pass_is_approximated(self) -> "Recipe":
        if self.mining == "loss_layer" and not isinstance(self.ranking, ExactRanking):
            kind = RANKINGS.name_of(self.ranking)
            raise ValueError(f"ranking: found {kind}; allowed with mining loss_layer: exact")
        return self

    @model_validator(mode="after")
    def _one_precision_for_ranking(self) -> "Recipe":
        own = precision_of(self.ranking)
        if own != "float32" and self.precision != "float32":
            where, allowed = (
                ("kind: found half", "exact")
                if isinstance(self.ranking, HalfRanking)
                else (f"precision: found {own}", "float32")
            )
            raise ValueError(f"ranking.{where}; allowed with precision {self.precision}, which ranks too: {allowed}")
        return self

    @model_validator(mode="after")
    def _what_the_detector_has(self) -> "Recipe":
        if isinstance(self.detector, TorchvisionSpec) and isinstance(self.ranking, LowRankRanking):
            raise ValueError("ranking: found low_rank; allowed for torchvision's detectors: exact, half")
        if isinstance(self.ranking, RememberedRanking) and self.detector.given_proposals is None:
            raise ValueError("ranking: found remembered; allowed where proposals are new in every step: others")
        if self.rpn_sampler is None:
            return self
        kind = SAMPLERS.name_of(self.rpn_sampler)
        if self.detector.given_proposals is not None:
            raise ValueError(f"rpn_sampler: found {kind}; allowed for a detector without region proposal network: null")
        if ranks_together(self.rpn_sampler):
            raise ValueError("rpn_sampler.cap: found batch; allowed: image")
        return self

    @model_validator(mode="after")
    def _cap_joins_images(self) -> "Recipe":
        if not ranks_together(self.sampler):
            return self
        if self.accumulate:
            raise ValueError("accumulate: found true; allowed with sampler.cap 'batch': false, to rank images together")
        if not isinstance(self.loss, LogLoss):
            kind = LOSSES.name_of(self.loss)
            raise ValueError(
                f"loss: found {kind}; allowed with sampler.cap 'batch': log; others weigh each image alone"
            )
        return self


def load_recipe(name: str, overrides: Sequence[str] | str = ()) -> Recipe:
    """Read a recipe.

    A recipe may name another as its ``base`` (built-in, or a file beside it) and say only what differs. Parts are
    joined field by field, but a part with another ``kind`` than the base's replaces it.

    Args:
        name: a YAML file, or the name of a built-in recipe.
        overrides: ``field=value`` or ``part.field=value``, values in YAML: ``optimizer.lr=0.01``, ``sampler=random``.

    Raises:
        OhemError: no such recipe, or a field that is unknown or wrong. All faults are listed, one a line.
    """
    values = read_values(find_recipe(name))
    for override in as_names(overrides):
        apply_override(values, override)
    return _validated(Recipe, values, name)


def override_spec(spec: AnyDetectorSpec, overrides: Sequence[str] | str) -> AnyDetectorSpec:
    """A trained detector's spec with other settings for its use: ``detection.refine=0.05``.

    Raises:
        OhemError: a field that is unknown, wrong, or decides what the weights mean.
    """
    values = spec.model_dump(mode="json")
    of_proposals = ("proposals.",) if spec.rpn is None else tuple(f"rpn.{name}=" for name in RPN_IN_USE)
    allowed = ("detection.", "image.", *of_proposals)
    for override in as_names(overrides):
        if not override.startswith(allowed):
            names = ", ".join(f"{name}*" if name.endswith(".") else name.rstrip("=") for name in allowed)
            raise OhemError(f"{override}: found a setting of training; allowed: {names}")
        apply_override(values, override)
    return _validated(type(spec), values, "settings")


_S = TypeVar("_S", bound=Spec)


def _validated(model: type[_S], values: dict[str, Any], name: str) -> _S:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise OhemError("\n".join(f"{name}: {_explain(each, model)}" for each in error.errors())) from error


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _explain(error: Any, model: type[Spec]) -> str:
    """One line: the field, what was found, what is allowed."""
    where = ".".join(str(part) for part in error["loc"] if part not in DETECTORS)
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(model, error["loc"][:-1])
        hint = did_you_mean(str(error["loc"][-1]), allowed)
        return f"{where}: found an unknown field{hint}; allowed: {', '.join(allowed)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{where}.{message}" if where else message
    allowed = error["msg"].removeprefix("Input should be ")
    hint = did_you_mean(error["input"], re.findall("'(.*?)'", allowed)) if error["type"] == "literal_error" else ""
    return f"{where}: found {quoted(error['input'])}{hint}; allowed: {allowed}"


def _fields_at(model: type[Spec], location: Sequence[str | int]) -> list[str]:
    spec: Any = model
    for part in location:
        annotation = DETECTORS.get(str(part)) or spec.model_fields[str(part)].annotation
        spec = next((each for each in get_args(annotation) if each is not type(None)), annotation)
    return list(spec.model_fields)
