"""The paper's numbers, in percent unless said, as its tables print them."""

from collections.abc import Mapping

from ohem.data.voc import VOC_CLASSES

_PER_CLASS = """
07 frcn       67.2 74.6 76.8 67.6 52.9 37.8 78.7 78.8 81.6 42.2 73.6 67.0 79.4 79.6 74.1 68.3 33.4 65.9 68.7 75.4 68.1
07 ohem       69.9 71.2 78.3 69.2 57.9 46.5 81.8 79.1 83.2 47.9 76.2 68.9 83.2 80.8 75.8 72.7 39.9 67.5 66.2 75.6 75.9
07 frcn_mb    72.4 77.8 81.3 71.4 60.4 48.3 85.0 84.6 86.2 49.4 80.7 68.1 84.1 86.7 80.2 75.3 38.7 71.9 71.5 77.9 67.8
07 ohem_mb    75.1 77.7 81.9 76.0 64.9 55.8 86.3 86.0 86.8 53.2 82.9 70.3 85.0 86.3 78.7 78.0 46.8 76.1 72.7 80.9 75.5
0712 frcn     70.0 77.0 78.1 69.3 59.4 38.3 81.6 78.6 86.7 42.8 78.8 68.9 84.7 82.0 76.6 69.9 31.8 70.1 74.8 80.4 70.4
0712 ohem     74.6 77.7 81.2 74.1 64.2 50.2 86.2 83.8 88.1 55.2 80.9 73.8 85.1 82.6 77.8 74.9 43.7 76.1 74.2 82.3 79.6
0712 ohem_mb  78.9 80.6 85.7 79.8 69.9 60.8 88.3 87.9 89.6 59.7 85.1 76.5 87.1 87.3 82.4 78.8 53.7 80.5 78.7 84.5 80.7
12 frcn       65.7 80.3 74.7 66.9 46.9 37.7 73.9 68.6 87.7 41.7 71.1 51.1 86.0 77.8 79.8 69.8 32.1 65.5 63.8 76.4 61.7
12 ohem       69.8 81.5 78.9 69.6 52.3 46.5 77.4 72.1 88.2 48.8 73.8 58.3 86.9 79.7 81.4 75.0 43.0 69.5 64.8 78.5 68.9
12 ohem_mb    72.9 85.8 82.3 74.1 55.8 55.1 79.5 77.7 90.4 52.1 75.5 58.4 88.6 82.4 83.1 78.3 47.0 77.2 65.1 79.3 70.4
07++12 frcn   68.4 82.3 78.4 70.8 52.3 38.7 77.8 71.6 89.3 44.2 73.0 55.0 87.5 80.5 80.8 72.0 35.1 68.3 65.7 80.4 64.2
07++12 ohem   71.9 83.0 81.3 72.5 55.6 49.0 78.9 74.7 89.5 52.3 75.0 61.0 87.9 80.9 82.4 76.3 47.1 72.5 67.3 80.6 71.2
07++12 ohem_mb 76.3 86.3 85.0 77.0 60.9 59.3 81.9 81.1 91.9 55.8 80.6 63.0 90.8 85.1 85.3 80.7 54.9 78.3 70.8 82.8 74.9
"""

_COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_COCO = {
    "frcn": (19.7, 35.9, 19.9, 3.5, 18.8, 34.6),
    "ohem": (22.6, 42.5, 22.2, 5.0, 23.7, 37.9),
    "ohem_m": (24.4, 44.4, 24.8, 7.1, 26.4, 38.5),
    "ohem_m_trainval": (25.5, 45.9, 26.1, 7.4, 27.7, 40.3),
}

TABLE2 = {
    "vgg_cnn_m_1024": {"frcn": (0.13, 2.6), "ohem": (0.22, 3.6)},
    "vgg16": {"frcn": (0.57, 6.4), "ohem": (1.00, 8.7)},
}
"""Network, arm -> seconds an iteration of two images, GB, on a Titan X; VGG16's with gradients accumulated."""

TABLE6 = {
    ("", ""): (67.2, 69.9),
    ("test", ""): (68.4, 71.1),
    ("", "B"): (70.8, 72.7),
    ("test", "B"): (71.9, 74.1),
    ("train", ""): (67.7, 70.7),
    ("train, test", ""): (68.6, 71.9),
    ("train", "B"): (71.2, 72.9),
    ("train, test", "B"): (72.4, 75.1),
}
"""Where several scales are used, whether boxes are iterated -> mAP of FRCN and of OHEM."""


def voc_row(data: str, method: str) -> Mapping[str, float]:
    """A row of tables 3 and 4: ``map50`` and ``ap:CLASS`` of each class."""
    for line in _PER_CLASS.split("\n"):
        words = line.split()
        if words[:2] == [data, method]:
            mean, *per_class = (float(word) for word in words[2:])
            return {"map50": mean} | {f"ap:{name}": ap for name, ap in zip(VOC_CLASSES, per_class, strict=True)}
    raise KeyError((data, method))


def coco_column(method: str) -> Mapping[str, float]:
    """A column of table 5: ``coco:AP`` and so on."""
    return {f"coco:{key}": value for key, value in zip(_COCO_KEYS, _COCO[method], strict=True)}
