"""Weights files: what is saved, what is rebuilt, what is refused."""

import json
import pickle
import re
import struct

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Generator

from ohem.boxes import DeltaStats
from ohem.errors import OhemError
from ohem.models.backbones import CAFFE, TORCHVISION
from ohem.models.pretrained import lite0_imagenet, load_pretrained
from ohem.models.spec import BackboneSpec, DetectionSpec, DetectorSpec, HeadSpec, ImageSpec
from ohem.models.tensor_files import read_state_dict
from ohem.models.weights import build_detector, load_detector, save_detector, start_from

CLASSES = ("cat", "dog", '猫 & "quoted"')


def spec_of(name="resnet18", weights="none", **settings):
    head = HeadSpec(fc=(8, 8), pool_size=7 if name == "vgg16" else 2)
    return DetectorSpec(**{"backbone": BackboneSpec(name=name, weights=weights), "head": head, **settings})


def new_detector(spec=None, num_classes=3, seed=0):
    """With box deltas large enough to see."""
    torch.manual_seed(seed)
    detector = build_detector(spec or spec_of(), num_classes)
    torch.nn.init.normal_(detector.head.bbox_pred.weight, std=0.3)
    torch.nn.init.normal_(detector.head.bbox_pred.bias, std=0.3)
    torch.nn.init.normal_(detector.head.cls_score.weight, std=1.0)
    return detector.eval()


def random_stats(num_classes=3, seed=0):
    rng = Generator().manual_seed(seed)
    shape = (num_classes + 1, 4)
    return DeltaStats(torch.randn(shape, generator=rng) / 10, 0.05 + torch.rand(shape, generator=rng) / 4)


@torch.no_grad()
def predict(detector):
    image = torch.rand(3, 100, 120, generator=Generator().manual_seed(0))
    corner = torch.rand(30, 2, generator=Generator().manual_seed(1)) * 50
    return detector([image], [torch.cat([corner, corner + 20], dim=1)])[0]


def same(found, expected):
    assert torch.allclose(found[0], expected[0], atol=1e-6)
    assert torch.allclose(found[1], expected[1], atol=1e-3)


@pytest.fixture
def saved(tmp_path):
    """A file of a detector for CLASSES."""
    detector = new_detector()
    save_detector(tmp_path / "weights.safetensors", detector, spec_of(), CLASSES)
    return tmp_path / "weights.safetensors"


# ------------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", ["resnet18", "vgg_cnn_m_1024", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("empirical", [False, True])
def test_a_saved_detector_predicts_the_same(tmp_path, name, empirical):
    """Also when its deltas were normalised by statistics of its own, which are folded into the layer in the file."""
    detector = new_detector(spec_of(name))
    if empirical:
        detector.delta_mean.copy_(random_stats().mean)
        detector.delta_std.copy_(random_stats().std)
    save_detector(tmp_path / "w.safetensors", detector, spec_of(name), CLASSES)
    again, _, _ = load_detector(tmp_path / "w.safetensors")
    expected = predict(detector)
    assert expected[1].std() > 1
    same(predict(again), expected)
    assert not again.training


def test_the_file_tells_what_it_is(tmp_path):
    """Spec, class names and preprocessing come back equal, whatever they are."""
    spec = spec_of(
        backbone=BackboneSpec(name="resnet18", weights="none", strides=(8, 32), scales=(1.5, 0.3), freeze="all"),
        head=HeadSpec(pool="align", pool_size=3, channels=6, fc=(5,), dropout=0.25),
        image=ImageSpec(shortest=240, longest=320),
        detection=DetectionSpec(score_threshold=0.05),
        fg_iou=0.6,
        ignore=False,
        smooth_l1_beta=0.5,
        ranking_chunk=77,
    )
    detector = new_detector(spec)
    detector.backbone.preprocessing = CAFFE
    save_detector(tmp_path / "w.safetensors", detector, spec, CLASSES)
    again, found_spec, classes = load_detector(tmp_path / "w.safetensors")
    assert found_spec == spec
    assert classes == CLASSES
    assert again.num_classes == 3
    assert again.backbone.preprocessing == CAFFE
    assert (again.fg_iou, again.ignore, again.smooth_l1_beta, again.ranking_chunk) == (0.6, False, 0.5, 77)
    same(predict(again), predict(detector))


def test_the_file_holds_plain_deltas_and_the_statistics_they_were_trained_with(tmp_path):
    detector = new_detector()
    detector.set_delta_stats(random_stats())
    save_detector(tmp_path / "w.safetensors", detector, spec_of(), CLASSES)
    state = load_file(tmp_path / "w.safetensors")
    assert torch.equal(state["delta_mean"], random_stats().mean)
    assert torch.equal(state["delta_std"], random_stats().std)
    again, _, _ = load_detector(tmp_path / "w.safetensors")
    assert torch.equal(again.delta_mean, random_stats().mean)
    assert torch.equal(again.delta_std, random_stats().std)
    detector.set_delta_stats(DeltaStats(torch.zeros(4, 4), torch.ones(4, 4)))
    assert torch.allclose(state["head.bbox_pred.weight"], detector.head.bbox_pred.weight, atol=1e-6)
    assert torch.allclose(state["head.bbox_pred.bias"], detector.head.bbox_pred.bias, atol=1e-6)


def test_saving_leaves_the_detector_as_it_was(tmp_path):
    detector = new_detector().train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    save_detector(tmp_path / "w.safetensors", detector, spec_of(), CLASSES)
    assert detector.training
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_equal_detectors_are_equal_files_and_nothing_else_is_left(saved):
    first = saved.read_bytes()
    save_detector(saved, new_detector(), spec_of(), CLASSES)
    assert saved.read_bytes() == first
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_random_weights_are_of_torchs_seed():
    one, same_seed, other = (new_detector(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same_seed[name]) for name in one)
    assert not torch.equal(one["head.fc.0.weight"], other["head.fc.0.weight"])


# ----------------------------------------------------------------------------------------------- files that are not it


def refused(path):
    """What the user is told: one line that names the file."""
    with pytest.raises(OhemError) as caught:
        load_detector(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "; allowed: " in message
    return message


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["ohem"])


def rewrite(path, tensors=None, drop=(), **changes):
    """The same file with other tensors or metadata."""
    metadata = {key: value for key, value in (metadata_of(path) | changes).items() if key not in drop}
    save_file(load_file(path) if tensors is None else tensors, path, metadata={"ohem": json.dumps(metadata)})
    return path


def test_a_missing_file(tmp_path):
    assert "found no such file" in refused(tmp_path / "none.safetensors")
    assert "found no such file" in refused(tmp_path)


def test_a_truncated_file(saved):
    whole = saved.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:length])
        assert "no safetensors file" in refused(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"garbage " * 100,
        b"\xff" * 1000,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        pickle.dumps({"a": 1}),
    ],
)
def test_something_else(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("metadata", "found"),
    [
        (None, "None"),
        ({"format": "pt"}, "None"),
        ({"ohem": '{"format": "other"}'}, "'other'"),
        ({"ohem": "[]"}, r"\[\]"),
    ],
)
def test_tensors_of_another_program(tmp_path, metadata, found):
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors", metadata=metadata)
    assert re.search(rf"metadata\.format: found {found}; allowed: ohem-detector-1", refused(tmp_path / "w.safetensors"))


def test_metadata_that_is_no_json(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "w.safetensors", metadata={"ohem": "{"})
    refused(tmp_path / "w.safetensors")


def test_a_version_of_the_format_to_come(saved):
    assert "found 'ohem-detector-2'; allowed: ohem-detector-1" in refused(rewrite(saved, format="ohem-detector-2"))


@pytest.mark.parametrize("field", ["spec", "classes", "preprocessing"])
def test_a_missing_part_of_the_metadata(saved, field):
    assert "metadata" in refused(rewrite(saved, drop=[field]))


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": None},
        {"spec": []},
        {"spec": "{}"},
        {"spec": {"backbone": {"name": 3}}},
        {"spec": {"unknown": 1}},
        {"spec": {"fg_iou": 7}},
        {"classes": 3},
        {"classes": "cat"},
        {"classes": [1, 2, 3]},
        {"classes": {"cat": 1}},
        {"preprocessing": []},
        {"preprocessing": {}},
        {"preprocessing": {"mean": "abc", "std": [1, 1, 1]}},
        {"preprocessing": {"mean": [1, 1], "std": [1, 1, 1]}},
    ],
    ids=str,
)
def test_damaged_metadata(saved, changes):
    assert "metadata: found damaged" in refused(rewrite(saved, **changes))


def test_another_number_of_classes_than_tensors(saved):
    assert "delta_mean: found shape (4, 4); allowed: shape (2, 4)" in refused(rewrite(saved, classes=["cat"]))


def test_a_missing_and_an_extra_tensor(saved):
    whole = load_file(saved)
    tensors = {key: value for key, value in whole.items() if key != "head.fc.1.weight"}
    assert "head.fc.1.weight" in refused(rewrite(saved, tensors))
    assert "head.fc.9.weight" in refused(rewrite(saved, whole | {"head.fc.9.weight": torch.zeros(2)}))


def test_a_backbone_that_is_not_known(saved):
    refused(rewrite(saved, spec={"backbone": {"name": "no_such_net"}}))


def test_a_spec_that_asks_for_more_memory_than_its_tensors(saved):
    refused(rewrite(saved, spec=metadata_of(saved)["spec"] | {"head": {"fc": [10**10]}}))


# ------------------------------------------------------------------------------------------------- nothing is executed


class Bomb:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2))])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.safetensors"])
def test_no_pickle_is_executed(tmp_path, write, name):
    marker = tmp_path / "executed"
    write({"features.0.weight": Bomb(marker)}, tmp_path / name)
    with pytest.raises(OhemError) as caught:
        read_state_dict(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: found no readable weights")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # no advice to read it all the same
    refused(tmp_path / name)
    assert not marker.exists()


def test_the_bomb_would_go_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


def test_nor_from_torchs_cache_of_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"features.0.weight": Bomb(tmp_path / "executed")}, cache / "vgg16-397923af.pth")
    with torch.device("meta"):
        detector = build_detector(spec_of("vgg16"), 2)
    with pytest.raises(OhemError, match="could not load VGG16"):
        load_pretrained(detector, BackboneSpec(name="vgg16"))
    assert not (tmp_path / "executed").exists()


# -------------------------------------------------------------------------------------------------- reading state dicts


def test_both_kinds_of_file_are_read(tmp_path):
    state = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        found = read_state_dict(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"garbage\n" * 100])
def test_unreadable_files_are_refused_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(OhemError) as caught:
        read_state_dict(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: found no readable weights")
    assert "\n" not in str(caught.value)


def test_other_things_than_tensors_are_refused(tmp_path):
    for content in ({"state_dict": {"a": torch.zeros(1)}}, [torch.zeros(1)], torch.zeros(1)):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(OhemError, match="allowed: a mapping of names to tensors"):
            read_state_dict(tmp_path / "w.pth")
    with pytest.raises(OhemError, match="found no such file"):
        read_state_dict(tmp_path / "none.pth")


# ------------------------------------------------------------------------------------------- ImageNet's weights, VGG


def vgg_state(detector, seed=9):
    """torchvision's layout, at the widths of this detector, with the classifier's last layer on top."""
    rng = Generator().manual_seed(seed)
    shapes = {f"features.{key}": value.shape for key, value in detector.backbone.features.state_dict().items()}
    for prefix, layer in zip(("classifier.0", "classifier.3"), detector.head.fc, strict=True):
        shapes |= {f"{prefix}.{key}": value.shape for key, value in layer.state_dict().items()}
    shapes |= {"classifier.6.weight": (1000, 8), "classifier.6.bias": (1000,)}
    return {key: torch.randn(*shape, generator=rng) for key, shape in shapes.items()}


def loaded(detector, state):
    own = detector.state_dict()
    names = {key: f"backbone.{key}" for key in state if key.startswith("features.")}
    for number, place in (("0", "0"), ("3", "1")):
        names |= {f"classifier.{number}.{part}": f"head.fc.{place}.{part}" for part in ("weight", "bias")}
    return all(torch.equal(own[mine], state[theirs]) for theirs, mine in names.items())


@pytest.fixture(scope="module")
def vgg16():
    return new_detector(spec_of("vgg16"), 2)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_vgg16_loads_from_a_local_file(tmp_path, vgg16, suffix):
    """features by name, classifier.0 into fc6, classifier.3 into fc7; the last layer is for other classes."""
    assert vgg16.head.fc[0].in_features == 512 * 7 * 7
    state, path = vgg_state(vgg16, seed=len(suffix)), tmp_path / f"vgg16{suffix}"
    (torch.save if suffix == ".pth" else save_file)(state, path)
    scores = vgg16.head.cls_score.weight.clone()
    assert not loaded(vgg16, state)
    load_pretrained(vgg16, BackboneSpec(name="vgg16", weights=str(path)))
    assert loaded(vgg16, state)
    assert torch.equal(vgg16.head.cls_score.weight, scores)


def test_or_from_where_torchvision_keeps_its_downloads(tmp_path, monkeypatch, vgg16):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    state = vgg_state(vgg16, seed=1)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth")
    load_pretrained(vgg16, BackboneSpec(name="vgg16", weights="imagenet"))
    assert loaded(vgg16, state)


def test_without_a_network_the_way_out_is_named(tmp_path, monkeypatch, vgg16):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(OhemError, match=r"could not load VGG16's .* name a local copy of vgg16-397923af\.pth"):
        load_pretrained(vgg16, BackboneSpec(name="vgg16", weights="imagenet"))


def test_none_leaves_the_weights_as_they_are():
    detector = new_detector()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    load_pretrained(detector, BackboneSpec(name="resnet18", weights="none"))
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_vgg_cnn_m_1024_has_no_weights_in_any_package_but_loads_a_file(tmp_path):
    spec = spec_of("vgg_cnn_m_1024")
    detector = new_detector(spec)
    with pytest.raises(OhemError, match="found 'imagenet'; allowed for vgg_cnn_m_1024: a local file, or none"):
        load_pretrained(detector, BackboneSpec(name="vgg_cnn_m_1024", weights="imagenet"))
    state = vgg_state(detector)
    save_file(state, tmp_path / "vggm.safetensors")
    load_pretrained(detector, BackboneSpec(name="vgg_cnn_m_1024", weights=str(tmp_path / "vggm.safetensors")))
    assert loaded(detector, state)
    assert detector.backbone.preprocessing == CAFFE


@pytest.mark.parametrize("name", ["features.4.weight", "features.12.bias", "classifier.0.weight", "classifier.3.bias"])
def test_a_missing_or_misshapen_tensor_is_named(tmp_path, name):
    detector = new_detector(spec_of("vgg_cnn_m_1024"))
    path = tmp_path / "vggm.safetensors"
    state = vgg_state(detector)
    shape = tuple(state.pop(name).shape)
    save_file(state, path)
    with pytest.raises(OhemError) as caught:
        load_pretrained(detector, BackboneSpec(name="vgg_cnn_m_1024", weights=str(path)))
    assert str(caught.value) == f"{path}: {name}: found nothing; allowed: shape {shape}"
    save_file(state | {name: torch.zeros(3, 5)}, path)
    with pytest.raises(OhemError) as caught:
        load_pretrained(detector, BackboneSpec(name="vgg_cnn_m_1024", weights=str(path)))
    assert str(caught.value) == f"{path}: {name}: found shape (3, 5); allowed: shape {shape}"


def test_a_head_without_two_layers_takes_the_features_only(tmp_path):
    spec = spec_of("vgg_cnn_m_1024", head=HeadSpec(fc=(8,), pool_size=2))
    detector = new_detector(spec)
    features = {
        f"features.{key}": torch.randn(value.shape) for key, value in detector.backbone.features.state_dict().items()
    }
    save_file(features, tmp_path / "w.safetensors")
    before = detector.head.fc[0].weight.clone()
    load_pretrained(detector, BackboneSpec(name="vgg_cnn_m_1024", weights=str(tmp_path / "w.safetensors")))
    assert torch.equal(detector.backbone.features[0].weight, features["features.0.weight"])
    assert torch.equal(detector.head.fc[0].weight, before)


# ------------------------------------------------------------------------------------------ ImageNet's weights, timm


def timm_file(tmp_path, name, drop=()):
    state = timm.create_model(name).state_dict()
    save_file({key: value for key, value in state.items() if key not in drop}, tmp_path / "timm.safetensors")
    return state, BackboneSpec(name=name, weights=str(tmp_path / "timm.safetensors"))


def test_a_local_file_of_a_timm_classifier_loads(tmp_path):
    """The layers behind the last map wanted, and the classifier, are left out."""
    state, spec = timm_file(tmp_path, "resnet18")
    detector = new_detector()
    load_pretrained(detector, spec)
    own = detector.backbone.body.state_dict()
    assert "fc.weight" not in own
    assert all(torch.equal(own[key], state[key]) for key in own)


def test_also_of_models_whose_layers_timm_renames_for_feature_maps(tmp_path):
    _, spec = timm_file(tmp_path, "test_convnext")
    load_pretrained(new_detector(spec_of("test_convnext")), spec)


def test_a_timm_tensor_that_is_missing_is_named(tmp_path):
    _, spec = timm_file(tmp_path, "resnet18", drop=["layer1.0.conv1.weight", "layer1.0.bn1.weight"])
    with pytest.raises(OhemError, match=r"does not fit resnet18: layer1\.0\.conv1\.weight and 1 more tensors"):
        load_pretrained(new_detector(), spec)


def test_timms_downloads_need_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OhemError, match=r"could not load ImageNet weights of resnet18 .* tf_efficientnet_lite0"):
        load_pretrained(new_detector(), BackboneSpec(name="resnet18", weights="imagenet"))


def test_lite0_needs_none(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spec = spec_of("tf_efficientnet_lite0", weights="imagenet")
    detector = new_detector(spec)
    load_pretrained(detector, spec.backbone)
    state = lite0_imagenet()
    assert len(state) == 296
    assert all(torch.equal(value, state[key]) for key, value in detector.backbone.body.state_dict().items())


# ------------------------------------------------------------------------------------------------ from another detector


@pytest.mark.parametrize("empirical", [False, True])
def test_shared_classes_are_taken_over_by_name(saved, empirical):
    """Another order, one class less, one more; the new detector's own statistics do not move its boxes."""
    other, _, _ = load_detector(saved)
    classes = ("dog", "bird", "cat")
    detector = new_detector(seed=5)
    if empirical:
        detector.delta_mean.copy_(random_stats(3, 7).mean)
        detector.delta_std.copy_(random_stats(3, 7).std)
    stats = detector.delta_mean.clone(), detector.delta_std.clone()
    own = {key: value.clone() for key, value in detector.state_dict().items()}

    assert start_from(detector, classes, saved) == 2

    theirs, mine = predict(other), predict(detector)
    for name in ("dog", "cat"):
        i, j = classes.index(name) + 1, CLASSES.index(name) + 1
        assert torch.allclose(mine[1][:, i], theirs[1][:, j], atol=1e-3)
        log_odds = (p[0][:, k].log() - p[0][:, 0].log() for p, k in ((mine, i), (theirs, j)))  # against background
        assert torch.allclose(*log_odds, atol=1e-4)
    now = detector.state_dict()
    assert torch.equal(now["head.cls_score.weight"][2], own["head.cls_score.weight"][2])  # bird
    assert torch.equal(now["head.bbox_pred.weight"][8:12], own["head.bbox_pred.weight"][8:12])
    assert torch.equal(now["backbone.body.conv1.weight"], other.state_dict()["backbone.body.conv1.weight"])
    assert torch.equal(now["head.fc.1.weight"], other.state_dict()["head.fc.1.weight"])
    assert torch.equal(now["delta_mean"], stats[0])
    assert torch.equal(now["delta_std"], stats[1])


def test_no_shared_class_and_the_same_classes(saved):
    assert start_from(new_detector(seed=5), ("a", "b", "c"), saved) == 0
    detector = new_detector(seed=5)
    assert start_from(detector, CLASSES, saved) == 3
    same(predict(detector), predict(load_detector(saved)[0]))


def test_another_number_of_classes(saved):
    detector = new_detector(num_classes=1, seed=5)
    assert start_from(detector, ("dog",), saved) == 1
    assert torch.allclose(predict(detector)[1][:, 1], predict(load_detector(saved)[0])[1][:, 2], atol=1e-3)


def test_preprocessing_travels_with_the_weights(tmp_path):
    other = new_detector()
    other.backbone.preprocessing = CAFFE
    save_detector(tmp_path / "w.safetensors", other, spec_of(), CLASSES)
    detector = new_detector(seed=5)
    assert detector.backbone.preprocessing == TORCHVISION
    start_from(detector, CLASSES, tmp_path / "w.safetensors")
    assert detector.backbone.preprocessing == CAFFE


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (HeadSpec(fc=(8, 9), pool_size=2), "head.fc.1.weight"),
        (HeadSpec(fc=(8, 8), pool_size=3), "head.fc.0.weight"),
        (HeadSpec(fc=(8, 8, 8), pool_size=2), "head.fc.2.weight"),
        (HeadSpec(fc=(8, 8), pool_size=2, channels=4), "head.reduce.weight"),
    ],
    ids=str,
)
def test_another_architecture_is_refused_by_name(saved, head, name):
    with pytest.raises(OhemError) as caught:
        start_from(new_detector(spec_of(head=head)), CLASSES, saved)
    assert str(caught.value).startswith(f"{saved}: {name}: found ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"head": HeadSpec(fc=(8,), pool_size=2)},  # a layer less
        {"head": HeadSpec(fc=(8, 8), pool_size=2, pool="align")},
        {"backbone": BackboneSpec(name="resnet18", weights="none", scales=(3.0,))},
    ],
    ids=str,
)
def test_also_where_every_tensor_of_it_fits(saved, settings):
    with pytest.raises(OhemError):
        start_from(new_detector(spec_of(**settings)), CLASSES, saved)
