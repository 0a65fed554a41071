"""One typed recipe. Unknown fields and wrong values are refused, with the allowed ones named."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

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
    TypeAdapter,
    ValidationError,
    model_validator,
)

from ohem.data.rules import one_line, quoted
from ohem.errors import OhemError
from ohem.models.spec import DETECTORS, TORCHVISION_KINDS, AnyDetectorSpec, DetectorSpec, Spec, TorchvisionSpec
from ohem.ranking import ExactRanking, HalfRanking, LowRankRanking, Ranking, RememberedRanking
from ohem.reweighting import FocalLoss, GradientHarmonized, LogLoss, Reweighting
from ohem.rivals import IoUBalancedSampler, QuotaSampler, RankSampler, StratifiedSampler
from ohem.samplers import AllSampler, HardSampler, RandomSampler, Sampler

_T = TypeVar("_T")


class Kinds(Generic[_T]):
    """A setting that is one of several data classes, told apart by ``kind``; their fields are its options.

    Args:
        kinds: the classes by name.
    """

    def __init__(self, kinds: Mapping[str, type[_T]]) -> None:
        self._kinds = kinds

    def read(self, value: Any) -> _T:
        """From ``hard``, ``{kind: hard, nms_iou: 0.5}``, or an object of one of the classes.

        Raises:
            ValueError: a kind or an option that is unknown or wrong.
        """
        for cls in self._kinds.values():
            if isinstance(value, cls):
                return value
        options = {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
        kind = options.pop("kind", None)
        if not isinstance(kind, str) or kind not in self._kinds:
            raise ValueError(f"kind: found {quoted(kind)}; allowed: {', '.join(self._kinds)}")
        known = [field.name for field in fields(self._kinds[kind])]  # type: ignore[arg-type]
        for name, option in options.items():
            if name not in known:
                hint = _nearest(name, known)
                raise ValueError(
                    f"{name}: found an unknown field{hint}; allowed for {kind}: {', '.join(known) or 'none'}"
                )
            if isinstance(option, float) and not math.isfinite(option):
                raise ValueError(f"{name}: found {option}; allowed: finite numbers")
        try:
            return TypeAdapter(self._kinds[kind]).validate_python(options)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "value_error":  # the class's own words name the field
                raise first["ctx"]["error"] from error
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: found {quoted(first['input'])}; {first['msg']}") from error

    def write(self, value: _T) -> dict[str, Any]:
        """As :meth:`read` reads it, defaults included."""
        kind = next(name for name, cls in self._kinds.items() if type(value) is cls)
        return {"kind": kind, **asdict(value)}  # type: ignore[call-overload]


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
        return _join(_read_values(_find_recipe(str(kind)), ())["detector"], rest)
    if str(kind).startswith(("maskrcnn_", "keypointrcnn_")):
        raise ValueError(
            f"kind: found {kind!r}; allowed: {', '.join(TORCHVISION_KINDS)}; masks and keypoints are not read from data"
            " sets here, but ohem.use_sampler takes such models in a training script of yours"
        )
    raise ValueError(f"kind: found {kind!r}; allowed: {', '.join(TORCHVISION_KINDS)}, or the name of a built-in recipe")


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
    other_classes: Literal["error", "drop"] = "error"
    bad_boxes: Literal["error", "drop"] = "error"
    flip: bool = True


class OptimizerSpec(Spec):
    """SGD as in the paper, or AdamW.

    Attributes:
        lr: after warm-up, before the first step of the schedule.
        momentum: of SGD.
        weight_decay: of weights; biases have none.
        bias_lr_factor: 2 in the authors' code.
        backbone_lr_factor: below 1 for backbones that are to change less than the new layers.
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
        step_every: iterations.
        gamma: factor.
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
        every: iterations; 0 measures at the end only.
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
        images_per_step: N.
        accumulate: run the N images one after the other and add up their gradients, as the paper does for VGG16, for
            less memory; False runs them in one forward pass.
        precision: of the network's passes in training, by autocast; weights, losses and boxes stay in float32.
            ``float16`` scales its loss, and skips and counts the steps that overflow. See
            :class:`ohem.training.precision.Precision`.
        ema: decay of an exponential moving average of the weights, such as 0.9998, which is then what is validated and
            saved; None: the weights themselves. See :func:`ohem.training.averaging.weight_average`.
        seed: all randomness follows from it.
        init_from: start from another run (its folder, or a weights file); classes are matched by name.
        log_every: iterations.
        all_rois_every: iterations after which a sampler that does not rank has the loss over all RoIs measured.
        checkpoint_every: iterations.
        snapshot_every: iterations after which the weights are kept for good, in ``snapshots/``; 0: never.
    """

    detector: DetectorField = DetectorSpec()
    sampler: SamplerField = HardSampler()
    rpn_sampler: SamplerField | None = None
    loss: LossField = LogLoss()
    mining: Literal["read_only", "loss_layer"] = "read_only"
    ranking: RankingField = ExactRanking()
    data: DataSpec = DataSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    iterations: PositiveInt = 80_000
    images_per_step: PositiveInt = 2
    accumulate: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
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
            kind = RANKINGS.write(self.ranking)["kind"]
            raise ValueError(f"ranking: found {kind}; allowed with mining loss_layer: exact")
        return self

    @model_validator(mode="after")
    def _one_precision_for_ranking(self) -> "Recipe":
        own = getattr(self.ranking, "precision", "float32")
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
        kind = SAMPLERS.write(self.rpn_sampler)["kind"]
        if self.detector.given_proposals is not None:
            raise ValueError(f"rpn_sampler: found {kind}; allowed for a detector without region proposal network: null")
        if getattr(self.rpn_sampler, "cap", "image") == "batch":
            raise ValueError("rpn_sampler.cap: found batch; allowed: image")
        return self

    @model_validator(mode="after")
    def _cap_joins_images(self) -> "Recipe":
        if getattr(self.sampler, "cap", "image") != "batch":
            return self
        if self.accumulate:
            raise ValueError("accumulate: found true; allowed with sampler.cap 'batch': false, to rank images together")
        if not isinstance(self.loss, LogLoss):
            kind = LOSSES.write(self.loss)["kind"]
            raise ValueError(
                f"loss: found {kind}; allowed with sampler.cap 'batch': log; others weigh each image alone"
            )
        return self


def built_in_recipes() -> list[str]:
    """Names of the recipes that ship with the package; the paper's rows are called ``paper/...``."""
    here = Path(__file__).parent
    return sorted(path.relative_to(here).with_suffix("").as_posix() for path in here.rglob("*.yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    A recipe may name another as its ``base`` (built-in, or a file beside it) and say only what differs. Parts are
    joined field by field, but a part with another ``kind`` than the base's replaces it.

    Args:
        name: a YAML file, or the name of a built-in recipe.
        overrides: ``field=value`` or ``part.field=value``, values in YAML: ``optimizer.lr=0.01``, ``sampler=random``.

    Raises:
        OhemError: no such recipe, or a field that is unknown or wrong. All faults are listed, one a line.
    """
    values = _read_values(_find_recipe(name), ())
    for override in overrides:
        _apply(values, override)
    return _validated(Recipe, values, name)


def _find_recipe(name: str, beside: Path = Path()) -> Path:
    path = beside / name
    allowed = f"a recipe file, or one of {', '.join(built_in_recipes())}"
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise OhemError(f"{path}: found no such file; allowed: {allowed}")
        return path
    if name not in built_in_recipes():
        hint = _nearest(name, built_in_recipes())
        raise OhemError(f"recipe: found {name!r}{hint}; allowed: {allowed}")
    return Path(__file__).parent / f"{name}.yaml"


def _read_values(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """What a recipe file says, joined onto what its bases say."""
    if path in seen:
        raise OhemError(f"{path}: base: found a circle; allowed: recipes that do not name each other")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    # Beside its own, PyYAML lets through what Python says of numbers, dates and nesting that it cannot take.
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise OhemError(f"{path}: found no readable YAML ({one_line(str(error), 300)})") from error
    if not isinstance(values, dict):
        raise OhemError(f"{path}: found {type(values).__name__}; allowed: fields and values")
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise OhemError(f"{path}: base: found {quoted(base)}; allowed: the name of a recipe")
    return _join(_read_values(_find_recipe(base, path.parent), (*seen, path)), values)


def _join(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    joined = dict(base)
    for key, value in change.items():
        old = joined.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            joined[key] = _join(old, value)
        else:
            joined[key] = value
    return joined


def override_spec(spec: AnyDetectorSpec, overrides: Sequence[str]) -> AnyDetectorSpec:
    """A trained detector's spec with other settings for its use: ``detection.refine=0.05``.

    Raises:
        OhemError: a field that is unknown, wrong, or decides what the weights mean.
    """
    values = spec.model_dump(mode="json")
    for override in overrides:
        if not override.startswith(("detection.", "image.", "proposals.")):
            raise OhemError(f"{override}: found a setting of training; allowed: detection.*, image.* and proposals.*")
        _apply(values, override)
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


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise OhemError(f"{override!r}: found no field=value; allowed: such as optimizer.lr=0.01 or sampler=random")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise OhemError(f"{key}: found {quoted(text)}; allowed: a YAML value") from error
    *parents, last = key.split(".")
    for parent in parents:
        child = values.setdefault(parent, {})
        if isinstance(child, str):
            child = values[parent] = {"kind": child}
        if not isinstance(child, dict):
            raise OhemError(f"{key}: found a field inside {parent}, which is {quoted(child)}; allowed: {parent}=VALUE")
        values = child
    values[last] = value


def _nearest(name: str, known: Sequence[str]) -> str:
    """A guess at what a mistyped name should be, in brackets; empty where none is near."""
    close = difflib.get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _explain(error: Any, model: type[Spec]) -> str:
    """One line: the field, what was found, what is allowed."""
    where = ".".join(str(part) for part in error["loc"] if part not in DETECTORS)
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(model, error["loc"][:-1])
        hint = _nearest(str(error["loc"][-1]), allowed)
        return f"{where}: found an unknown field{hint}; allowed: {', '.join(allowed)}"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{where}.{message}" if where else message
    return f"{where}: found {quoted(error['input'])}; allowed: {error['msg'].removeprefix('Input should be ')}"


def _fields_at(model: type[Spec], location: Sequence[str | int]) -> list[str]:
    spec: Any = model
    for part in location:
        annotation = DETECTORS.get(str(part)) or spec.model_fields[str(part)].annotation
        spec = next((each for each in get_args(annotation) if each is not type(None)), annotation)
    return list(spec.model_fields)
