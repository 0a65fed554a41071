"""What the paper used and others published: images, annotations, proposals, weights, and where each is to be had.

Every address and checksum below was copied from the public source that stands beside it; none was made up. Of an
archive for which no checksum is published, `checksum` is None.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from ohem.errors import OhemError, did_you_mean


@dataclass(frozen=True)
class Archive:
    """One file to be downloaded and unpacked.

    Attributes:
        url: where it is.
        size: in bytes; where only a rounded number is published, that.
        checksum: ``md5:`` or ``sha256:`` and the digest in hexadecimal; None where none is published.
    """

    url: str
    size: int
    checksum: str | None = None

    @property
    def name(self) -> str:
        """The name of the file: the last part of its address."""
        return urlsplit(self.url).path.rpartition("/")[2]


@dataclass(frozen=True)
class Published:
    """What one name of ``ohem data`` stands for.

    Attributes:
        name: short.
        what: one sentence for people.
        licence: what its makers say of its use.
        archives: the files, all to be unpacked into the same folder.
        use: arguments of our commands that name what was unpacked, with ``{folder}`` for the folder.
    """

    name: str
    what: str
    licence: str
    archives: tuple[Archive, ...]
    use: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all its archives."""
        return sum(archive.size for archive in self.archives)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The machines it comes from."""
        return tuple(dict.fromkeys(urlsplit(archive.url).netloc for archive in self.archives))


_FLICKR = "images under flickr's terms of use"
_NONE = "no licence stated"
_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"

# VOC: addresses and MD5 from torchvision (torchvision/datasets/voc.py), sizes from TensorFlow Datasets
# (tensorflow_datasets/url_checksums/voc.txt). VOC2012's test images are for registered users at
# host.robots.ox.ac.uk:8080; the address and SHA-256 of the mirror are those of TensorFlow Datasets.
_VOC07_TRAINVAL = Archive(
    f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", 460_032_000, "md5:c52e279531787c972589f7e41ab4ae64"
)
_VOC07_TEST = Archive(f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar", 451_020_800, "md5:b6e924de25625d8de591ea690078ad9f")
_VOC12_TRAINVAL = Archive(
    f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar", 1_999_639_040, "md5:6cd6e144f989b92b3379bac3b3de84fd"
)
_VOC12_TEST = Archive(
    "http://pjreddie.com/media/files/VOC2012test.tar",
    1_850_626_560,
    "sha256:f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
)

# COCO: addresses, sizes and SHA-256 from TensorFlow Datasets (tensorflow_datasets/url_checksums/coco.txt).
_COCO_TRAIN = Archive(
    f"{_COCO}/zips/train2014.zip",
    13_510_573_713,
    "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
)
_COCO_VAL = Archive(
    f"{_COCO}/zips/val2014.zip",
    6_645_013_297,
    "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
)
_COCO_ANNOTATIONS = Archive(
    f"{_COCO}/annotations/annotations_trainval2014.zip",
    252_872_794,
    "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
)
_COCO_TEST = Archive(
    f"{_COCO}/zips/test2015.zip",
    13_270_587_935,
    "sha256:1a2aa896b81140a850a78fa8bff07d455698d2abf364ff05721763458a8101ca",
)
_COCO_TEST_INFO = Archive(
    f"{_COCO}/annotations/image_info_test2015.zip",
    1_887_164,
    "sha256:cf400242f8497257fb8a3e369bc766491f4a7e42625fb3d72555504e9a8c3b18",
)

# Fast R-CNN: rbgirshick/fast-rcnn, data/scripts/fetch_selective_search_data.sh and fetch_imagenet_models.sh; sizes as
# rounded there.
_SELECTIVE_SEARCH = Archive(
    "https://dl.dropboxusercontent.com/s/orrt7o6bp6ae0tc/selective_search_data.tgz",
    500_000_000,
    "md5:7078c1db87a7851b31966b96774cd9b9",
)
_IMAGENET_MODELS = Archive(
    "https://dl.dropboxusercontent.com/s/riazjuizq0w7dqm/imagenet_models.tgz",
    1_000_000_000,
    "md5:8b1d4b9da0593fc70ef403284f810adc",
)

# OHEM: the authors' data/scripts/fetch_fast_rcnn_ohem_models.sh (abhi2610/ohem names the script; its text was read in
# xiaolonw/adversarial-frcnn, which carries it on); size as rounded there.
_OHEM_MODELS = Archive(
    "http://graphics.cs.cmu.edu/projects/ohem/data/fast_rcnn_ohem_models.tgz",
    1_500_000_000,
    "md5:cbfd5b7ed5ec4d5cb838701cbf1f3ccb",
)

PUBLISHED = (
    Published(
        "voc07",
        "PASCAL VOC 2007: trainval and test",
        _FLICKR,
        (_VOC07_TRAINVAL, _VOC07_TEST),
        ("--data {folder}/VOCdevkit/VOC2007@trainval", "--data {folder}/VOCdevkit/VOC2007@test"),
    ),
    Published(
        "voc12",
        "PASCAL VOC 2012: trainval",
        _FLICKR,
        (_VOC12_TRAINVAL,),
        ("--data {folder}/VOCdevkit/VOC2012@trainval",),
    ),
    Published(
        "voc12-test",
        "PASCAL VOC 2012: test, images without annotations, for ohem submit (a mirror; Oxford's asks for a login)",
        _FLICKR,
        (_VOC12_TEST,),
        ("--data {folder}/VOCdevkit/VOC2012@test",),
    ),
    Published(
        "coco14",
        "MS COCO 2014, the paper's: train and val",
        f"annotations CC BY 4.0, {_FLICKR}",
        (_COCO_ANNOTATIONS, _COCO_VAL, _COCO_TRAIN),
        ("--data {folder}@train2014", "--data {folder}@val2014"),
    ),
    Published(
        "coco-test",
        "MS COCO 2015 test images without annotations, of which test-dev is a part, for ohem submit",
        _FLICKR,
        (_COCO_TEST_INFO, _COCO_TEST),
        ("--data {folder}@test-dev2015",),
    ),
    Published(
        "selective-search",
        "selective-search proposals for VOC 2007 and 2012, as published with Fast R-CNN",
        _NONE,
        (_SELECTIVE_SEARCH,),
        tuple(
            f"--proposals {{folder}}/selective_search_data/voc_{part}.mat"
            for part in ("2007_trainval", "2007_test", "2012_trainval", "2012_test")
        ),
    ),
    Published(
        "imagenet-models",
        "Caffe's ImageNet weights as published with Fast R-CNN: VGG16, VGG_CNN_M_1024, CaffeNet",
        "licences as in Caffe's model zoo",
        (_IMAGENET_MODELS,),
        tuple(f"{{folder}}/imagenet_models/{name}.v2.caffemodel" for name in ("VGG16", "VGG_CNN_M_1024")),
    ),
    Published(
        "ohem-models",
        "detectors trained with OHEM by the paper's authors, for Caffe: VGG16, VGG_CNN_M_1024",
        _NONE,
        (_OHEM_MODELS,),
        ("{folder}/fast_rcnn_ohem_models",),
    ),
)
"""All that ``ohem data`` knows."""


def find_published(name: str) -> Published:
    """The one of this name.

    Raises:
        OhemError: there is none.
    """
    names = [published.name for published in PUBLISHED]
    if name not in names:
        hint = did_you_mean(name, names)
        raise OhemError(f"data: found {name!r}{hint}; allowed: {', '.join(names)}")
    return PUBLISHED[names.index(name)]
