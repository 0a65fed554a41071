"""The paper in miniature: the same procedures, one small network, hours of two cores in the place of GPU weeks.

A row of the paper keeps what distinguishes it (sampler, N, B, bg_lo, scales); network, images and schedule are those of
one small recipe. Rows that the paper has for VGG_CNN_M_1024 and for VGG16 are one here. Data sets of different size are
fractions of one. AdamW's learning rate is tuned for every training with equal effort, on held-out training images.
"""

from collections.abc import Mapping

from ohem.studies.paper import TABLE6, coco_column, voc_row
from ohem.studies.plan import Data, Row, Study, Table, Training, by_name

RATES = (0.00025, 0.0005, 0.001)
APPROXIMATE = {
    "ohem_half": "ranking=half",
    "ohem_low_rank": "ranking={kind: low_rank, share: 0.4, refresh: 20, precision: bfloat16}",
}
"""Training -> its approximate ranking."""

LENGTHS = {"_half_as_long": 0.5, "": 1, "_twice_as_long": 2, "_four_times_as_long": 4}
"""What is added to a training's name -> so many times the recipe's iterations."""

_RANDOM = "sampler={kind: random, rois_per_image: %d, fg_fraction: %s, bg_lo: %s}"
_HARD = "sampler={kind: hard, rois_per_image: %d}"
_FRCN, _BG0 = _RANDOM % (64, 0.25, 0.1), _RANDOM % (64, 0.25, 0.0)
_ONE_IMAGE = "images_per_step=1"


def mini_study(data: Mapping[str, Data], recipe: str = "mini", shortest: int = 240, iterations: int = 1000) -> Study:
    """The study over these data.

    Args:
        data: ``main``, and ``coco`` where there is one.
        recipe: what all trainings share.
        shortest: the shortest side of that recipe's images; several scales are 0.8, 1 and 1.2 times it.
        iterations: that recipe's.
    """
    scales = [round(factor * shortest) for factor in (0.8, 1.0, 1.2)]
    longest = f"detector.image.longest={round(shortest * 5 / 3)}"
    several = (f"detector.image.train_scales={scales}", longest)

    def arm(name: str, *overrides: str, **options: str | bool | int) -> Training:
        # Scales and iterated boxes are the rows', whatever the recipe has.
        plain = [
            f"detector.{field}" for field in ("image.train_scales=[]", "image.test_scales=[]", "detection.refine=null")
        ]
        return Training(name, recipe, (*plain, *overrides), **options)  # type: ignore[arg-type]

    trainings = by_name(
        (
            arm("frcn", _FRCN, curve=True),
            arm("ohem", _HARD % 64, curve=True),
            arm("frcn_bg0", _BG0, curve=True),
            arm("all", "sampler=all", curve=True),
            arm("frcn_n1", _RANDOM % (128, 0.25, 0.1), _ONE_IMAGE),
            arm("frcn_n1_bg0", _RANDOM % (128, 0.25, 0.0), _ONE_IMAGE),
            arm("all_n1", "sampler=all", _ONE_IMAGE),
            arm("ohem_n1", _HARD % 128, _ONE_IMAGE),
            arm("frcn_fg_half", _RANDOM % (64, 0.5, 0.1)),
            arm("frcn_fg_free", _RANDOM % (64, "null", 0.1)),
            arm("frcn_m", _FRCN, *several, rate_of="frcn"),
            arm("ohem_m", _HARD % 64, *several, rate_of="ohem"),
            arm("frcn_quarter", _FRCN, "data.fraction=0.25", rate_of="frcn"),
            arm("ohem_quarter", _HARD % 64, "data.fraction=0.25", rate_of="ohem"),
            arm("frcn_coco", _FRCN, "data.holdout=0.3", data="coco", rate_of="frcn"),
            arm("ohem_coco", _HARD % 64, "data.holdout=0.3", data="coco", rate_of="ohem"),
            arm("bootstrap", _BG0, rate_of="frcn_bg0", rounds=3),
            arm("frozen", _FRCN, "detector.backbone.freeze=all"),
            arm("ohem_quota", "sampler=quota"),
            arm("iou_balanced", "sampler=iou_balanced"),
            arm("rank", "sampler=rank"),
            arm("stratified", "sampler=stratified"),
            arm("focal", "sampler=all", "loss=focal"),
            arm("ghm", "sampler=all", "loss=ghm"),
            *(arm(name, _HARD % 64, ranking, rate_of="ohem") for name, ranking in APPROXIMATE.items()),
            *(
                arm(f"{base}{name}", sampler, f"iterations={round(times * iterations)}", rate_of=base)
                for name, times in LENGTHS.items()
                if name
                for base, sampler in (("frcn", _FRCN), ("ohem", _HARD % 64))
            ),
        )
    )
    test_scales, far = f"image.test_scales={scales}", longest.removeprefix("detector.")
    uses = {
        "plain": (),
        "plain_part": (),
        "m": (test_scales, far),
        "m_pool": (test_scales, far, "detection.join=pool"),
        "m_nearest": (test_scales, far, "detection.join=nearest"),
        "b": ("detection.refine=0.05",),
        "mb": (test_scales, far, "detection.refine=0.05"),
    }
    return Study("mini", trainings, _tables(), uses, RATES, data, use_images=400, loss_images=300)


def _tables() -> Mapping[str, Table]:
    per_class = ("map50", "ap:*")
    coco = tuple(coco_column("frcn"))
    tables = (
        Table(
            "table1",
            "Impact of hyperparameters on training",
            ("map50",),
            (
                Row("Fast R-CNN, N 2, bg_lo 0.1", "frcn", paper={"map50": 67.2}),
                Row("without the heuristic, N 2, bg_lo 0", "frcn_bg0", paper={"map50": 67.5}),
                Row("fewer images, N 1, bg_lo 0.1", "frcn_n1", paper={"map50": 66.3}),
                Row("fewer images, N 1, bg_lo 0", "frcn_n1_bg0", paper={"map50": 66.3}),
                Row("all RoIs, N 1", "all_n1", paper={"map50": 67.5}),
                Row("all RoIs, N 2", "all", paper={"map50": 68.7}),
                Row("OHEM, N 1", "ohem_n1", paper={"map50": 69.7}),
                Row("OHEM, N 2", "ohem", paper={"map50": 69.9}),
            ),
            "the paper's numbers are VGG16's on VOC07",
        ),
        Table(
            "table3",
            "Average precision per class",
            per_class,
            (
                Row("Fast R-CNN", "frcn", paper=voc_row("07", "frcn")),
                Row("OHEM", "ohem", paper=voc_row("07", "ohem")),
                Row("Fast R-CNN + M + B", "frcn_m", "mb", voc_row("07", "frcn_mb")),
                Row("OHEM + M + B", "ohem_m", "mb", voc_row("07", "ohem_mb")),
            ),
            "rows with M or B: on a part of the test images",
        ),
        Table(
            "table4",
            "Average precision per class, by the amount of data",
            per_class,
            (
                Row("Fast R-CNN, a quarter of the images", "frcn_quarter"),
                Row("OHEM, a quarter of the images", "ohem_quarter"),
                Row("Fast R-CNN, all images", "frcn"),
                Row("OHEM, all images", "ohem"),
            ),
            "fractions of one data set in the place of VOC12 and 07++12, so without the paper's numbers",
        ),
        Table(
            "table5",
            "COCO's metric",
            coco,
            (
                Row("Fast R-CNN", "frcn_coco", paper=coco_column("frcn")),
                Row("OHEM", "ohem_coco", paper=coco_column("ohem")),
            ),
            "on held-out images of the same small set",
        ),
        Table(
            "table6",
            "Several scales (M) and iterative box regression (B)",
            ("map50",),
            tuple(
                Row(
                    f"{name}, M: {scales or 'no'}, B: {'yes' if boxes else 'no'}",
                    f"{arm}_m" if "train" in scales else arm,
                    _use("test" in scales, bool(boxes)),
                    {"map50": paper[column]},
                )
                for (scales, boxes), paper in TABLE6.items()
                for column, (arm, name) in enumerate((("frcn", "Fast R-CNN"), ("ohem", "OHEM")))
            ),
            "on a part of the test images; M also lets the longer side have 5/3 of the recipe's shortest",
        ),
        joins_table(),
        Table(
            "rivals",
            "Other ways to choose or weigh RoIs",
            ("map50", "map70", "loss_test"),
            (
                Row("Fast R-CNN's heuristic", "frcn"),
                Row("OHEM", "ohem"),
                Row("OHEM as in MMDetection", "ohem_quota"),
                Row("S-OHEM", "stratified"),
                Row("IoU-balanced", "iou_balanced"),
                Row("online batch selection", "rank"),
                Row("all RoIs", "all"),
                Row("focal loss", "focal"),
                Row("GHM", "ghm"),
                Row("frozen backbone (SPPnet)", "frozen"),
                Row("bootstrapping, three rounds", "bootstrap"),
            ),
            "not in the paper",
            ("ohem", "plain"),
        ),
        rankings_table(),
        _lengths_table(),
    )
    return {table.name: table for table in tables}


def joins_table() -> Table:
    """How the test scales become one: the paper leaves it open."""
    rows = (
        ("one scale", "plain_part"),
        ("scores and boxes averaged", "m"),
        ("detections pooled", "m_pool"),
        ("each RoI at the scale nearest 224 x 224", "m_nearest"),
    )
    return Table(
        "joins",
        "Ways to join several test scales",
        ("map50", "map70"),
        tuple(Row(label, "ohem_m", use) for label, use in rows),
        "not in the paper; OHEM, trained at several scales",
        ("ohem_m", "plain_part"),
    )


def rankings_table() -> Table:
    """What the approximations of the read-only pass do to the result."""
    rows = (
        ("exact", "ohem"),
        ("half precision", "ohem_half"),
        ("low_rank, 40 % of the RoIs exactly, half precision", "ohem_low_rank"),
    )
    return Table(
        "rankings",
        "OHEM with an approximate ranking",
        ("map50", "map70", "loss_test"),
        tuple(Row(label, training) for label, training in rows),
        "not in the paper",
        ("ohem", "plain"),
    )


def _lengths_table() -> Table:
    """Whether OHEM's gain waits for longer training; each length at the rate that is best for the recipe's own."""
    rows = []
    for name, length in LENGTHS.items():
        rows += [
            Row(f"Fast R-CNN, {length:g} times the iterations", f"frcn{name}"),
            Row(f"OHEM, {length:g} times the iterations", f"ohem{name}", against_above=True),
        ]
    return Table(
        "lengths", "Shorter and longer trainings", ("map50", "map70", "loss_test"), tuple(rows), "not in the paper"
    )


def _use(several_scales: bool, iterated: bool) -> str:
    return {(False, False): "plain_part", (True, False): "m", (False, True): "b", (True, True): "mb"}[
        several_scales, iterated
    ]
