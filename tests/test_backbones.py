"""Backbones: layers, shapes, preprocessing and what is frozen, against published numbers and slow formulas."""

import math

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers
from torchvision.transforms.functional import normalize

from ohem.errors import OhemError
from ohem.models.backbones import CAFFE, TORCHVISION, VGG16, VGGCNNM1024, Preprocessing, TimmBackbone, build_backbone
from ohem.models.pretrained import lite0_imagenet, load_pretrained
from ohem.models.spec import BackboneSpec, DetectorSpec, HeadSpec
from ohem.models.weights import build_detector


def spec_of(name, head=None, **settings):
    return DetectorSpec(
        backbone=BackboneSpec(name=name, weights="none", **settings), head=head or HeadSpec(fc=(8,), pool_size=2)
    )


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


# ----------------------------------------------------------------------------------------------------- preprocessing


def test_caffes_weights_read_blue_green_red_bytes_less_their_means():
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert CAFFE(red).flatten().tolist() == pytest.approx([-102.9801, -115.9465, 255 - 122.7717], abs=1e-4)


def test_torchvisions_weights_read_normalised_red_green_blue():
    images = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.allclose(TORCHVISION(images), expected, atol=1e-6)


def test_scale_comes_before_mean_and_mean_before_std():
    once = Preprocessing((10.0, 20.0, 30.0), (2.0, 4.0, 5.0), scale=100.0)
    assert once(torch.full((1, 3, 1, 1), 0.5)).flatten().tolist() == [20.0, 7.5, 4.0]


def test_bytes_are_read_as_floats_up_to_one():
    backbone = VGGCNNM1024()
    image = torch.randint(0, 256, (1, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    read = []
    backbone.features[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    backbone(image)
    backbone(image.float() / 255)
    blue = image[0, 2].float()
    for each in read:
        assert torch.allclose(each[0, 0], blue - 102.9801, atol=1e-3)


# ------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize(
    ("name", "capability", "slow"),
    [
        ("vgg16", "AVX2", True),
        ("vgg_cnn_m_1024", "AVX2", True),
        ("resnet18", "AVX2", True),
        ("resnet50", "AVX2", True),
        ("tf_efficientnet_lite0", "AVX2", False),
        ("vgg16", "AVX512", False),
        ("vgg16", "DEFAULT", False),
    ],
)
def test_dense_convolutions_train_in_torchs_own_layout_without_avx512(name, capability, slow, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    backbone = build_backbone(BackboneSpec(name=name, weights="none"))
    images = torch.rand(2, 3, 64, 48)
    assert backbone.prepare(images).is_contiguous(memory_format=torch.channels_last) is not slow
    with torch.no_grad():
        assert backbone.prepare(images).is_contiguous(memory_format=torch.channels_last)


def test_both_layouts_train_alike():
    torch.manual_seed(0)
    backbone, images, gradients = VGG16(), torch.rand(1, 3, 64, 48), []
    for slow in (False, True):
        backbone.slow_channels_last = slow
        backbone.zero_grad()
        backbone(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in backbone.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


# ------------------------------------------------------------------------------------------------------------- VGG16


@pytest.fixture(scope="module")
def vgg16():
    torch.manual_seed(0)
    return VGG16()


def test_vgg16_has_the_published_number_of_parameters_layer_by_layer():
    with torch.device("meta"):
        detector = build_detector(spec_of("vgg16", HeadSpec()), 20)
    convolutions = [size_of(layer) for layer in detector.backbone.features if isinstance(layer, nn.Conv2d)]
    assert convolutions == [
        1_792,  # conv1_1: 64 of 3x3x3
        36_928,
        73_856,  # conv2_1
        147_584,
        295_168,  # conv3_1
        590_080,
        590_080,
        1_180_160,  # conv4_1
        2_359_808,
        2_359_808,
        2_359_808,  # conv5_1
        2_359_808,
        2_359_808,
    ]
    assert size_of(detector.backbone) == 14_714_688
    assert [size_of(layer) for layer in detector.head.fc] == [102_764_544, 16_781_312]
    assert size_of(detector.head.cls_score) == 4096 * 21 + 21
    assert size_of(detector.head.bbox_pred) == 4096 * 84 + 84


def test_vgg16_is_torchvisions_but_for_pool5_and_the_rounding(vgg16):
    """Its weights load by name, and where sizes divide by 16 it computes the same."""
    theirs = make_layers(cfgs["D"], batch_norm=False)[:-1]
    theirs.load_state_dict(vgg16.features.state_dict())
    image = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(vgg16.maps(image), theirs(image), atol=1e-5)
    with torch.device("meta"):
        names = torchvision.models.vgg16(weights=None).state_dict().keys()
    assert {f"features.{name}" for name in vgg16.features.state_dict()} <= set(names)


def vgg16_side(side):
    for _ in range(4):  # four poolings 2x2/2, rounded up; convolutions keep the size
        side = math.ceil(side / 2)
    return side


# --------------------------------------------------------------------------------------------------- VGG_CNN_M_1024


def test_vgg_cnn_m_1024_has_the_number_of_parameters_of_its_layers():
    with torch.device("meta"):
        detector = build_detector(spec_of("vgg_cnn_m_1024", HeadSpec(pool_size=6, fc=(4096, 1024))), 20)
    convolutions = [size_of(layer) for layer in detector.backbone.features if isinstance(layer, nn.Conv2d)]
    assert convolutions == [
        14_208,  # conv1: 96 filters of 3 * 7 * 7 = 147 weights and a bias
        614_656,  # conv2: 256 of 96 * 5 * 5 = 2400
        1_180_160,  # conv3: 512 of 256 * 3 * 3 = 2304
        2_359_808,  # conv4: 512 of 512 * 3 * 3 = 4608
        2_359_808,  # conv5
    ]
    assert [size_of(layer) for layer in detector.head.fc] == [
        75_501_568,  # fc6: 4096 of 512 * 6 * 6 = 18432
        4_195_328,  # fc7: 1024 of 4096
    ]
    assert size_of(detector.head.cls_score) == 1024 * 21 + 21
    assert size_of(detector.head.bbox_pred) == 1024 * 84 + 84


def test_vgg_cnn_m_1024_has_the_layers_of_the_release_in_their_order():
    layers = VGGCNNM1024().features
    kinds = ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"] * 2 + ["Conv2d", "ReLU"] * 3
    assert [type(layer).__name__ for layer in layers] == kinds
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [(c.kernel_size[0], c.stride[0], c.padding[0]) for c in convolutions] == [
        (7, 2, 0),
        (5, 2, 1),
        (3, 1, 1),
        (3, 1, 1),
        (3, 1, 1),
    ]


def test_its_norm_is_caffes():
    """Caffe: x / (k + alpha / n * sum of squares over n channels)^beta, with n 5, alpha 5e-4, beta 0.75, k 2."""
    norm = VGGCNNM1024().features[2]
    x = 200 * torch.randn(1, 96, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = np.empty(x.shape)
    values = x.numpy().astype(np.float64)
    for channel in range(96):
        window = values[:, max(channel - 2, 0) : channel + 3]
        expected[:, channel] = values[:, channel] / (2.0 + 5e-4 / 5 * (window**2).sum(axis=1)) ** 0.75
    assert np.allclose(norm(x).numpy(), expected, rtol=1e-5)
    assert np.abs(expected / values - 2**-0.75).max() > 0.1  # large enough that alpha matters


def vgg_cnn_m_side(side):
    side = (side - 7) // 2 + 1  # conv1 7x7/2
    side = math.ceil((side - 3) / 2) + 1  # pool1 3x3/2, rounded up
    side = (side + 2 - 5) // 2 + 1  # conv2 5x5/2, padding 1
    return math.ceil((side - 3) / 2) + 1  # pool2


# ------------------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("height", "width"),
    [(600, 800), (600, 1000), (601, 799), (375, 500), (333, 501), (97, 113), (64, 65), (609, 999), (610, 611)],
)
@pytest.mark.parametrize(("kind", "side"), [(VGG16, vgg16_side), (VGGCNNM1024, vgg_cnn_m_side)])
def test_shapes_are_caffes(kind, side, height, width):
    with torch.device("meta"):
        backbone = kind()
        feature = backbone(torch.empty(2, 3, height, width))
    assert feature.shape == (2, 512, side(height), side(width))


def test_the_papers_size_by_hand():
    assert (vgg16_side(600), vgg16_side(800)) == (38, 50)  # 600 -> 300 -> 150 -> 75 -> 38
    # 600 -> 297 -> 148 -> 73 -> 36 and 800 -> 397 -> 198 -> 98 -> 49
    assert (vgg_cnn_m_side(600), vgg_cnn_m_side(800)) == (36, 49)


def test_the_feature_map_is_not_negative(vgg16):
    """It ends behind conv5_3's ReLU, so that max-pooling an empty bin to 0 is the least it can be."""
    assert vgg16(torch.rand(1, 3, 40, 50)).min() >= 0
    assert VGGCNNM1024()(torch.rand(1, 3, 60, 50)).min() >= 0


# ------------------------------------------------------------------------------------------------------------ frozen


def frozen(module):
    return [
        name.removesuffix(".weight") for name, p in module.named_parameters() if not p.requires_grad and p.dim() > 1
    ]


@pytest.mark.parametrize(
    ("name", "freeze", "layers"),
    [
        ("vgg16", "paper", ["features.0", "features.2", "features.5", "features.7"]),  # conv1_1 .. conv2_2
        ("vgg16", "none", []),
        ("vgg_cnn_m_1024", "paper", ["features.0"]),  # conv1
        ("vgg_cnn_m_1024", "none", []),
        ("vgg16", "early", ["features.0", "features.2", "features.5", "features.7"]),
        ("resnet18", "paper", []),
        ("resnet18", "early", ["body.conv1", *(f"body.layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2))]),
    ],
)
def test_frozen_layers(name, freeze, layers):
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(name=name, freeze=freeze))
    assert frozen(backbone) == layers
    biases = [
        key.removesuffix(".bias") for key, p in backbone.named_parameters() if not p.requires_grad and p.dim() == 1
    ]
    assert name == "resnet18" or biases == layers


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", "mobilenetv3_small_050"])
def test_early_layers_are_those_up_to_stride_4(name):
    """What comes out at stride 4 owes nothing to a trained parameter; what comes out at stride 8 does."""
    backbone = build_backbone(BackboneSpec(name=name, freeze="early"))
    body = timm.create_model(name, features_only=True, pretrained=False)
    strides = body.feature_info.reduction()
    body.load_state_dict(backbone.body.state_dict(), strict=False)
    for ours, theirs in zip(backbone.body.parameters(), body.parameters(), strict=False):
        theirs.requires_grad_(ours.requires_grad)
    maps = dict(zip(strides, body(torch.rand(1, 3, 64, 64)), strict=True))
    assert not maps[4].requires_grad
    assert maps[8].requires_grad


@pytest.mark.parametrize("name", ["vgg16", "vgg_cnn_m_1024", "resnet18"])
def test_all_can_be_frozen(name):
    with torch.device("meta"):
        backbone = build_backbone(BackboneSpec(name=name, freeze="all"))
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


# -------------------------------------------------------------------------------------------------------------- timm


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_chosen_maps_are_divided_by_their_scales_and_joined_at_the_finest(size):
    torch.manual_seed(0)
    backbone = TimmBackbone("resnet18", (8, 32), (4.0, 0.5)).eval()
    whole = timm.create_model("resnet18", features_only=True, out_indices=(2, 4)).eval()
    whole.load_state_dict(backbone.body.state_dict())
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        fine, coarse = whole(backbone.preprocessing(image))
        joined = backbone(image)
    assert (backbone.out_channels, backbone.stride) == (128 + 512, 8)
    assert joined.shape == (1, 640, *fine.shape[2:])
    # Convolutions round otherwise with channels last, by how much depends on where in memory the maps lie.
    torch.testing.assert_close(joined[:, :128], fine / 4.0, rtol=1e-4, atol=1e-5)
    enlarged = F.interpolate(coarse, fine.shape[2:], mode="nearest")
    torch.testing.assert_close(joined[:, 128:], enlarged / 0.5, rtol=1e-4, atol=1e-5)


def test_without_scales_maps_are_as_they_are():
    backbone = TimmBackbone("resnet18", (16,)).eval()
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(backbone(image), backbone.body(backbone.preprocessing(image))[0])


def test_a_new_network_has_learned_nothing_from_the_question_whether_it_takes_any_size():
    backbone = TimmBackbone("resnet18")
    fresh = timm.create_model("resnet18", features_only=True, out_indices=(3,)).state_dict()
    statistics = [key for key in fresh if "running" in key or "tracked" in key]
    assert len(statistics) == 15 * 3
    assert all(torch.equal(backbone.body.state_dict()[key], fresh[key]) for key in statistics)
    assert backbone.body.training


def test_preprocessing_is_that_of_its_weights():
    assert TimmBackbone("resnet18").preprocessing == TORCHVISION
    assert TimmBackbone("tf_efficientnet_lite0").preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("size", [(1, 200), (24, 200), (200, 2), (3, 3)])
def test_images_too_thin_for_vgg_cnn_m_1024_are_padded_with_zeros(size):
    backbone, image = VGGCNNM1024().eval(), torch.rand(1, 3, *size)
    padded = torch.zeros(1, 3, *(max(side, 25) for side in size))
    padded[:, :, : size[0], : size[1]] = image
    assert torch.equal(backbone.maps(image), backbone.maps(padded))


def test_a_network_for_one_size_of_image_is_refused():
    with pytest.raises(OhemError, match="found 'vit_tiny_patch16_224', which does not take images of any size"):
        TimmBackbone("vit_tiny_patch16_224")


def test_batch_norm_uses_its_stored_statistics_always():
    backbone = TimmBackbone("resnet18").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    image = torch.rand(2, 3, 64, 64)
    in_training = backbone(image)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert torch.equal(in_training, backbone.eval()(image))
    assert backbone.train().training
    assert any(p.requires_grad for p in backbone.parameters())


def test_also_inside_a_detector():
    detector = build_detector(spec_of("resnet18"), 2).train()
    norms = [m for m in detector.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert detector.head.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "no_such_net"}, r"detector\.backbone\.name: found 'no_such_net'; allowed: vgg16"),
        (
            {"name": "resnet18", "strides": (16, 64)},
            r"strides: found \[64\]; allowed for resnet18: \[2, 4, 8, 16, 32\]",
        ),
        ({"name": "resnet18", "strides": (16, 32), "scales": (1.0,)}, r"scales: found 1 scales; allowed: one for each"),
        ({"name": "vgg16", "strides": (8,)}, r"strides: found \(8,\); allowed for vgg16: \[16\]"),
        ({"name": "vgg_cnn_m_1024", "scales": (2.0,)}, r"allowed for vgg_cnn_m_1024: \[16\], no scales"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, message):
    with pytest.raises(OhemError, match=message) as caught:
        build_backbone(BackboneSpec(**settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strides", [(32, 16), (16, 16)])
def test_strides_go_from_fine_to_coarse_each_once(strides):
    with pytest.raises(OhemError, match="strides"):
        TimmBackbone("resnet18", strides)


# -------------------------------------------------------------------------------------------- lite0's ImageNet weights


def photo(name, shortest=240):
    """(3, H, W) in [0, 1], one of the photographs that come with scikit-image."""
    image = torch.from_numpy(getattr(skimage.data, name)().copy()).permute(2, 0, 1).float() / 255
    scale = shortest / min(image.shape[1:])
    size = [round(side * scale) for side in image.shape[1:]]
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("chelsea", {281, 282, 285}), ("coffee", {967, 968})],  # tabby, tiger and Egyptian cat; espresso and cup
)
def test_the_wheels_weights_classify(name, classes):
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(lite0_imagenet())
    image = photo(name, 256)
    top, left = ((side - 224) // 2 for side in image.shape[1:])
    read = TimmBackbone("tf_efficientnet_lite0").preprocessing(image[None, :, top : top + 224, left : left + 224])
    with torch.no_grad():
        probabilities = model.eval()(read)[0].softmax(dim=0)
    assert int(probabilities.argmax()) in classes
    assert probabilities[sorted(classes)].sum() > 0.5


@pytest.fixture(scope="module")
def lite0():
    spec = spec_of("tf_efficientnet_lite0", strides=(16, 32))
    detector = build_detector(spec, 2)
    load_pretrained(detector, spec.backbone.model_copy(update={"weights": "imagenet"}))
    return detector.backbone.eval()


def test_the_backbone_computes_the_classifiers_own_maps(lite0):
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(lite0_imagenet())
    image = photo("chelsea")[None]
    with torch.no_grad():
        fine, coarse = model.eval().forward_intermediates(
            lite0.preprocessing(image), indices=[3, 4], intermediates_only=True
        )
        joined = lite0(image)
    assert lite0.out_channels == fine.shape[1] + coarse.shape[1] == 112 + 320
    assert torch.allclose(joined[:, :112], fine, atol=1e-4)
    assert torch.allclose(joined[:, 112:], F.interpolate(coarse, fine.shape[2:], mode="nearest"), atol=1e-4)


@pytest.mark.parametrize("name", ["chelsea", "coffee", "astronaut"])
def test_its_maps_spread_by_about_6_and_2_3(lite0, name):
    """The scales of the lite0 recipe bring both near 1, within a factor of 1.5 on any photograph."""
    with torch.no_grad():
        joined = lite0(photo(name)[None])
    for part, scale in ((joined[:, :112], 6.0), (joined[:, 112:], 2.3)):
        assert 1 / 1.5 < part.std().item() / scale < 1.5
