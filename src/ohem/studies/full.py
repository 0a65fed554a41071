"""The paper at full scale: its networks, data and schedules, as the recipes ``paper/...`` have them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ohem.studies.mini import APPROXIMATE, joins_table, rankings_table
from ohem.studies.paper import TABLE6, coco_column, voc_row
from ohem.studies.plan import Data, Row, Study, Table, Training, by_name

_TEST_SCALES = ("image.test_scales=[480, 576, 688, 864, 1000]", "image.longest=1000")
_REFINE = "detection.refine=0.05"


def full_data(folder: Path) -> Mapping[str, Data]:
    """What of the paper's data is in a folder, laid out as ``ohem data`` does it.

    VOC12's test set and COCO's test-dev have no public annotations: what trains for them is judged by their servers.
    COCO's train set is tested on val2014 in its place.
    """
    voc07, voc12 = folder / "VOCdevkit/VOC2007", folder / "VOCdevkit/VOC2012"
    mat = folder / "selective_search_data"
    parts = {
        "07": (f"{voc07}@trainval", mat / "voc_2007_trainval.mat"),
        "07test": (f"{voc07}@test", mat / "voc_2007_test.mat"),
        "12": (f"{voc12}@trainval", mat / "voc_2012_trainval.mat"),
    }

    def data(train: tuple[str, ...], test: str | None, server: str = "") -> Data:
        tested = (test,) if test else ()
        # Published proposals for all of its images, or our own for all.
        known = all(parts[name][1].is_file() for name in (*train, *tested))
        files, test_files = ([str(parts[name][1]) for name in names if known] for names in (train, tested))
        sources, test_sources = ([parts[name][0] for name in names] for names in (train, tested))
        return Data(tuple(sources), tuple(test_sources), tuple(files), tuple(test_files), server=server)

    has07, has12 = (path.is_dir() for path in (voc07, voc12))
    found: dict[str, Data] = {}
    if has07:
        found["main"] = data(("07",), "07test")
    if has12:
        found["voc12"] = data(("12",), None, "voc12")
    if has07 and has12:
        found["voc0712"] = data(("07", "12"), "07test")
        found["voc07pp12"] = data(("07", "07test", "12"), None, "voc12")
    if (folder / "train2014").is_dir() and (folder / "val2014").is_dir():
        train, val = (f"{folder}@{split}" for split in ("train2014", "val2014"))
        found["coco"] = Data((train,), (val,))
        found["coco_trainval"] = Data((train, val), server="coco")
    return found


def full_study(folder: Path) -> Study:
    """The study over the data and Caffe weights of a folder."""
    caffe = folder / "imagenet_models"
    weights = {
        network: [f"detector.backbone.weights={path}"] if path.is_file() else []
        for network, path in (
            ("vgg16", caffe / "VGG16.v2.caffemodel"),
            ("vggm", caffe / "VGG_CNN_M_1024.v2.caffemodel"),
        )
    }

    def arm(name: str, recipe: str, *overrides: str, data: str = "main", curve: bool = False) -> Training:
        network = "vggm" if "vggm" in recipe else "vgg16"
        # Here each use says its scales itself; alone, a detector is tested at one.
        fixed = (*weights[network], "detector.image.test_scales=[]")
        return Training(name, f"paper/{recipe}", (*fixed, *overrides), data, curve=curve)

    voc07 = "voc07_vgg16"
    quarter = "data.fraction=0.25"
    trainings = [
        arm("frcn", f"{voc07}_frcn", curve=True),
        arm("ohem", f"{voc07}_ohem", curve=True),
        arm("frcn_bg0", f"{voc07}_frcn_bg0", curve=True),
        arm("all", f"{voc07}_all", curve=True),
        *(arm(name, f"{voc07}_{name}") for name in ("frcn_n1", "frcn_n1_bg0", "all_n1", "ohem_n1", "frcn_m", "ohem_m")),
        arm("frcn_fg_half", f"{voc07}_frcn", "sampler.fg_fraction=0.5"),
        arm("frcn_fg_free", f"{voc07}_frcn", "sampler.fg_fraction=null"),
        arm("frcn_quarter", f"{voc07}_frcn", quarter),
        arm("ohem_quarter", f"{voc07}_ohem", quarter),
        *(arm(f"vggm_{name}", f"voc07_vggm_{name}") for name in ("frcn", "frcn_bg0", "all_n1", "all", "ohem")),
        *(
            arm(f"{name}_{data}", f"{data}_vgg16_{name}", data=data)
            for data in ("voc0712", "voc12", "voc07pp12")
            for name in ("frcn", "ohem", "ohem_m")
        ),
        *(arm(f"{name}_coco", f"coco_vgg16_{name}", data="coco") for name in ("frcn", "ohem", "ohem_m")),
        arm("ohem_m_coco_trainval", "coco_trainval_vgg16_ohem_m", data="coco_trainval"),
        arm("frcn_official", f"{voc07}_frcn_official"),
        arm("ohem_official", f"{voc07}_ohem_official"),
        arm("frozen", f"{voc07}_frozen"),
        replace(arm("bootstrap", f"{voc07}_frcn_bg0"), rounds=3),
        arm("ohem_quota", f"{voc07}_ohem", "sampler=quota"),
        arm("iou_balanced", f"{voc07}_frcn", "sampler=iou_balanced"),
        arm("rank", f"{voc07}_ohem", "sampler=rank"),
        arm("stratified", f"{voc07}_ohem", "sampler=stratified"),
        arm("focal", f"{voc07}_all", "sampler=all", "loss=focal"),
        arm("ghm", f"{voc07}_all", "sampler=all", "loss=ghm"),
        *(arm(name, f"{voc07}_ohem", ranking) for name, ranking in APPROXIMATE.items()),
    ]
    uses = {
        "plain": (),
        "plain_part": (),
        "m": _TEST_SCALES,
        "m_pool": (*_TEST_SCALES, "detection.join=pool"),
        "m_nearest": (*_TEST_SCALES, "detection.join=nearest"),
        "b": (_REFINE,),
        "mb": (*_TEST_SCALES, _REFINE),
    }
    return Study("full", by_name(tuple(trainings)), _tables(), uses, (), full_data(folder))


def _tables() -> Mapping[str, Table]:
    tables = (
        Table("table1", "Impact of hyperparameters on FRCN training", ("map50",), _table1()),
        Table("table3", "VOC 2007 test detection average precision", ("map50", "ap:*"), _table3()),
        Table(
            "table4",
            "VOC 2012 test detection average precision",
            ("map50", "ap:*"),
            _table4(),
            "judged by the server: ohem submit makes what it wants",
        ),
        Table(
            "table5",
            "MS COCO detection average precision",
            tuple(coco_column("frcn")),
            (
                Row("Fast R-CNN", "frcn_coco", paper=coco_column("frcn")),
                Row("OHEM", "ohem_coco", paper=coco_column("ohem")),
                Row("OHEM + M", "ohem_m_coco", "m", coco_column("ohem_m")),
                Row("OHEM + M, trainval", "ohem_m_coco_trainval", "m", coco_column("ohem_m_trainval")),
            ),
            "ours on val2014, the paper's on test-dev 2015, where ohem submit makes the file for the server",
        ),
        Table("table6", "Impact of multi-scale and iterative bbox regression", ("map50",), _table6()),
        joins_table(),
        Table(
            "rivals",
            "Other ways to choose or weigh RoIs",
            ("map50", "map70", "loss_test"),
            _rivals(),
            base=("ohem", "plain"),
        ),
        rankings_table(),
    )
    return {table.name: table for table in tables}


def _table1() -> tuple[Row, ...]:
    rows = (
        ("1 Fast R-CNN, VGGM", "vggm_frcn", 59.6),
        ("2 Fast R-CNN, VGG16", "frcn", 67.2),
        ("3 bg_lo 0, VGGM", "vggm_frcn_bg0", 57.2),
        ("4 bg_lo 0, VGG16", "frcn_bg0", 67.5),
        ("5 N 1, bg_lo 0.1, VGG16", "frcn_n1", 66.3),
        ("6 N 1, bg_lo 0, VGG16", "frcn_n1_bg0", 66.3),
        ("7 B 2048, N 1, VGGM", "vggm_all_n1", 57.7),
        ("8 B 2048, N 2, VGGM", "vggm_all", 60.4),
        ("9 B 2048, N 1, VGG16", "all_n1", 67.5),
        ("10 B 2048, N 2, VGG16", "all", 68.7),
        ("11 OHEM, N 1, VGG16", "ohem_n1", 69.7),
        ("12 OHEM, N 2, VGGM", "vggm_ohem", 62.0),
        ("13 OHEM, N 2, VGG16", "ohem", 69.9),
    )
    return tuple(Row(label, training, paper={"map50": value}) for label, training, value in rows)


def _table3() -> tuple[Row, ...]:
    return (
        Row("FRCN, 07", "frcn", paper=voc_row("07", "frcn")),
        Row("OHEM, 07", "ohem", paper=voc_row("07", "ohem")),
        Row("FRCN + M + B, 07", "frcn_m", "mb", voc_row("07", "frcn_mb")),
        Row("OHEM + M + B, 07", "ohem_m", "mb", voc_row("07", "ohem_mb")),
        Row("FRCN, 07+12", "frcn_voc0712", paper=voc_row("0712", "frcn")),
        Row("OHEM, 07+12", "ohem_voc0712", paper=voc_row("0712", "ohem")),
        Row("OHEM + M + B, 07+12", "ohem_m_voc0712", "mb", voc_row("0712", "ohem_mb")),
    )


def _table4() -> tuple[Row, ...]:
    return tuple(
        Row(f"{name}, {shown}", f"{training}_{data}", use, voc_row(shown, method))
        for data, shown in (("voc12", "12"), ("voc07pp12", "07++12"))
        for name, training, use, method in (
            ("FRCN", "frcn", "plain", "frcn"),
            ("OHEM", "ohem", "plain", "ohem"),
            ("OHEM + M + B", "ohem_m", "mb", "ohem_mb"),
        )
    )


def _table6() -> tuple[Row, ...]:
    use = {(False, False): "plain_part", (True, False): "m", (False, True): "b", (True, True): "mb"}
    return tuple(
        Row(
            f"{name}, M: {scales or 'no'}, B: {'yes' if boxes else 'no'}",
            f"{arm}_m" if "train" in scales else arm,
            use["test" in scales, bool(boxes)],
            {"map50": paper[column]},
        )
        for (scales, boxes), paper in TABLE6.items()
        for column, (arm, name) in enumerate((("frcn", "FRCN"), ("ohem", "OHEM")))
    )


def _rivals() -> tuple[Row, ...]:
    rows = (
        ("Fast R-CNN's heuristic", "frcn"),
        ("OHEM", "ohem"),
        ("Fast R-CNN's heuristic, the code's schedule", "frcn_official"),
        ("OHEM, the code's schedule", "ohem_official"),
        ("OHEM as in MMDetection", "ohem_quota"),
        ("S-OHEM", "stratified"),
        ("IoU-balanced", "iou_balanced"),
        ("online batch selection", "rank"),
        ("all RoIs", "all"),
        ("focal loss", "focal"),
        ("GHM", "ghm"),
        ("frozen backbone (SPPnet)", "frozen"),
        ("bootstrapping, three rounds", "bootstrap"),
    )
    return tuple(Row(label, training) for label, training in rows)
