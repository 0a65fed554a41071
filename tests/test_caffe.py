"""Caffe's weights: the wire format against an encoder written here, the networks against Caffe's definitions."""

import hashlib
import json
import math
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from ohem.cli import main
from ohem.conversion import convert
from ohem.data.voc import VOC_CLASSES
from ohem.errors import OhemError
from ohem.models.backbones import CAFFE, TORCHVISION
from ohem.models.caffe import MAX_FIELDS, read_caffemodel
from ohem.models.caffe_networks import read_network
from ohem.models.pretrained import load_pretrained
from ohem.models.spec import BackboneSpec, DetectorSpec, HeadSpec
from ohem.models.weights import build_detector, load_detector
from ohem.recipes.recipe import load_recipe

# ----------------------------------------------------------- protobuf's wire format, from its documentation: an encoder

VARINT, FIXED64, BYTES, START_GROUP, FIXED32 = 0, 1, 2, 3, 5


def varint(value):
    value %= 2**64
    result = b""
    while value >= 128:
        result += bytes([value % 128 + 128])
        value //= 128
    return result + bytes([value])


def tag(number, wire):
    return varint(8 * number + wire)


def integer(number, value):
    return tag(number, VARINT) + varint(value)


def message(number, content):
    return tag(number, BYTES) + varint(len(content)) + content


def floats(array, how="packed"):
    """BlobProto.data (5), or double_data (8)."""
    values = np.asarray(array).ravel()
    if how == "packed":
        return message(5, values.astype("<f4").tobytes())
    if how == "in pieces":
        half = len(values) // 2
        return floats(values[:half]) + floats(values[half:])
    if how == "unpacked":
        return b"".join(tag(5, FIXED32) + struct.pack("<f", value) for value in values)
    if how == "doubles":
        return message(8, values.astype("<f8").tobytes())
    return b"".join(tag(8, FIXED64) + struct.pack("<d", value) for value in values)


def shape_of(dims, how="packed"):
    """BlobProto.shape (7), or num, channels, height and width (1 to 4) of older files."""
    if how == "packed":
        return message(7, message(1, b"".join(map(varint, dims))))
    if how == "unpacked":
        return message(7, b"".join(integer(1, size) for size in dims))
    return b"".join(integer(k + 1, size) for k, size in enumerate((1,) * (4 - len(dims)) + tuple(dims)))


def blob(array, values="packed", shape="packed"):
    return shape_of(np.shape(array), shape) + floats(array, values)


def layer(name, blobs, old=False, stride=None):
    """A LayerParameter, or the older V1LayerParameter; with a ConvolutionParameter when a stride is given."""
    number = {"name": 4, "blobs": 6, "convolution": 10} if old else {"name": 1, "blobs": 7, "convolution": 106}
    kind = integer(5, 4) if old else message(2, b"Convolution")
    settings = integer(1, 96) + integer(4, 3) + (b"" if stride in (None, 1) else integer(6, stride))
    return message(
        2 if old else 100,
        message(number["name"], name.encode())
        + kind
        + (message(number["convolution"], settings) if stride else b"")
        + b"".join(message(number["blobs"], each) for each in blobs),
    )


def net(*layers):
    """A NetParameter: its name, an input, and layers; one of them without weights."""
    return message(1, b"a net") + message(3, b"data") + layer("relu", []) + b"".join(layers)


# ------------------------------------------------------------------------------------------------------------- reading

ARRAY = np.arange(24, dtype=np.float32).reshape(4, 3, 2) / 7 - 1


def written(folder, content):
    path = folder / "net.caffemodel"
    path.write_bytes(content)
    return path


def only_array(folder, content):
    (found,) = read_caffemodel(written(folder, net(layer("a", [content]))))
    return found.blobs[0].read()


def test_a_file_by_hand(tmp_path):
    """Every byte from the documentation: a layer "fc" with one blob of shape (1, 2) and the values 1 and -2."""
    shape = bytes.fromhex("3a04 0a02 0102")  # 7: 4 bytes, in them 1: 2 bytes, in them 1 and 2
    data = bytes.fromhex("2a08 0000803f 000000c0")  # 5: 8 bytes
    blobs = bytes.fromhex("3a10") + shape + data  # 7: 16 bytes
    path = written(tmp_path, bytes.fromhex("a206 16 0a02 6663") + blobs)  # 100: 22 bytes, in them 1: "fc"
    (found,) = read_caffemodel(path)
    assert found.name == "fc"
    assert found.blobs[0].read().tolist() == [[1.0, -2.0]]
    # And so the encoder of the other tests is right.
    assert path.read_bytes() == message(100, message(1, b"fc") + message(7, blob([[1.0, -2.0]])))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("values", ["packed", "in pieces", "unpacked", "doubles", "unpacked doubles"])
@pytest.mark.parametrize("shape", ["packed", "unpacked", "four numbers"])
def test_both_kinds_of_layer_and_every_encoding_of_an_array(tmp_path, old, values, shape):
    bias = np.float32([0.5, -0.25, 1e-30, 3e38])
    layers = [layer("a", [blob(ARRAY, values, shape), blob(bias, values, shape)], old), layer("b", [blob(bias)], old)]
    found = read_caffemodel(written(tmp_path, net(*layers)))
    assert [one.name for one in found] == ["a", "b"]
    first, second = (each.read() for each in found[0].blobs)
    if shape == "four numbers":
        assert (first.shape, second.shape) == ((1, 4, 3, 2), (1, 1, 1, 4))
    else:
        assert (first.shape, second.shape) == ((4, 3, 2), (4,))
    assert first.dtype == torch.float32
    assert np.array_equal(first.numpy().reshape(4, 3, 2), ARRAY)
    assert np.array_equal(second.numpy().ravel(), bias)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 66, 192, 193, 1000])
def test_unpacked_values_of_any_number(tmp_path, count):
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    assert np.array_equal(only_array(tmp_path, blob(values, "unpacked")), values)
    assert np.array_equal(only_array(tmp_path, floats(values, "unpacked") + shape_of([count])), values)


def test_fields_in_any_order_with_unknown_ones_between(tmp_path):
    unknown = (
        integer(77, 2**64 - 1)
        + tag(78, FIXED64) + bytes(8)
        + tag(79, FIXED32) + b"\xff" * 4
        + message(80, b"\xff" * 9)
        + tag(9, FIXED32) + bytes(4)
    )  # fmt: skip
    half = ARRAY.ravel()[:12], ARRAY.ravel()[12:]
    first = unknown + floats(half[0], "unpacked") + unknown + shape_of(ARRAY.shape) + unknown
    content = first + floats(half[1][:5]) + unknown + floats(half[1][5:], "unpacked") + unknown
    whole = message(7, content) + unknown + message(1, b"late name") + unknown
    (found,) = read_caffemodel(written(tmp_path, unknown + message(100, whole) + unknown))
    assert found.name == "late name"
    assert np.array_equal(found.blobs[0].read(), ARRAY)


def test_where_a_file_says_two_things_caffe_takes_the_older_shape_and_the_doubles(tmp_path):
    both = shape_of([24]) + shape_of((2, 3, 4), "four numbers") + floats(ARRAY) + floats(ARRAY + 1, "doubles")
    found = only_array(tmp_path, both)
    assert found.shape == (1, 2, 3, 4)
    assert np.allclose(found.numpy().ravel(), ARRAY.ravel() + 1)


def test_an_older_shape_that_is_not_complete_is_filled_with_zeros(tmp_path):
    """As Caffe has it, and so there can be no values."""
    with pytest.raises(OhemError, match=r"a\.blobs\[0\]: found shape \(24, 0, 0, 0\) and 24 values"):
        only_array(tmp_path, integer(1, 24) + floats(ARRAY))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (b"", {1}),
        (integer(6, 2), {2}),
        (message(6, varint(2) + varint(3)), {2, 3}),
        (integer(13, 2) + integer(14, 2), {2}),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_strides_of_convolutions(tmp_path, settings, found, old):
    names = (4, 6, 10) if old else (1, 7, 106)
    content = message(names[0], b"a") + message(names[2], settings) + message(names[1], blob(ARRAY))
    other = message(names[0], b"b") + message(names[1], blob(ARRAY))
    number = 2 if old else 100
    layers = read_caffemodel(written(tmp_path, message(number, content) + message(number, other)))
    assert [one.strides for one in layers] == [frozenset(found), None]


# ------------------------------------------------------------------------------------------- damaged and hostile files


def refused(path, read=read_caffemodel):
    """What the user is told: one line that names the file."""
    with pytest.raises(OhemError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "; allowed: " in text
    return text


def broken(content):
    """A layer "a" with such a blob."""
    return message(100, message(1, b"a") + message(7, content))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>\n<html><head><title>404</title>", "a file of text, beginning with '<!DOCTYPE html>"),
        (b'name: "VGG_ILSVRC_16_layers"\ninput: "data"\ninput_dim: 1\n', "a file of text, beginning with 'name: "),
        (b'input: "data"\ninput_dim: 1\ninput_dim: 3\ninput_dim: 224', "a file of text, beginning with 'input: "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "a file of text, beginning with 'version"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + bytes(50), "byte 0: found a field of wire type 7"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), ""),
        (bytes(100), "byte 0: found a field number of 0"),
        (b"\xff" * 100, "byte 0: found a number of more than 10 bytes"),
        (message(1, b"a net"), "no layers with weights"),
        (net(), "no layers with weights"),
        (net(layer("a", [blob(ARRAY)]))[:-1], "bytes where"),
        (tag(100, BYTES) + varint(2**63) + b"x", "a field of 9223372036854775808 bytes where 1 are left"),
        (tag(100, BYTES) + b"\x80" * 9, "a number that is cut short"),
        (tag(100, BYTES) + b"\x80" * 11, "a number of more than 10 bytes"),
        (tag(2**30, VARINT), "a field number of"),
        (tag(5, START_GROUP) + bytes(5), "a field of wire type 3"),
        (integer(100, 7), "field 100 with wire type 0, not 2"),
        (message(100, integer(1, 7)), "field 1 with wire type 0, not 2"),
        (message(100, message(1, b"x" * 1000)), "a name of 1000 bytes"),
        (message(100, message(1, b"two\nlines")), "a name that cannot be printed"),
        (broken(shape_of([24]) + floats(ARRAY[:3])), "a.blobs[0]: found shape (24,) and 18 values"),
        (broken(shape_of([24])), "a.blobs[0]: found shape (24,) and 0 values"),
        (broken(floats(ARRAY)), "a.blobs[0]: found shape () and 24 values"),
        (broken(shape_of([-4, -6]) + floats(ARRAY)), "a.blobs[0]: found shape (-4, -6) and 24 values"),
        (broken(shape_of([0, 2**62])), "a.blobs[0]: found shape (0, 4611686018427387904) and 0 values"),
        (broken(shape_of([2**62, 2**62]) + floats(ARRAY)), "and 24 values"),
        (broken(shape_of([1] * 33) + floats([1])), "more than 32 dimensions"),
        (broken(shape_of([1] * 33, "unpacked") + floats([1])), "33 dimensions"),
        (broken(shape_of([1]) + message(5, b"123")), "3 bytes of values of 4"),
        (broken(shape_of([1]) + message(8, b"12345")), "5 bytes of values of 8"),
        (broken(shape_of([1]) + integer(5, 1)), "field 5 with wire type 0, not 2"),
        (broken(shape_of([1]) + tag(5, FIXED64) + bytes(8)), "field 5 with wire type 1, not 2"),
        (broken(message(1, b"\x01") + floats([1])), "field 1 with wire type 2, not 0"),
        (integer(6, 1) * (MAX_FIELDS + 1), "more than 200000 fields"),
        (broken(integer(6, 1) * (MAX_FIELDS + 1)), "more than 200000 fields"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_no_whole_caffemodel_is_refused_in_one_line(tmp_path, content, found):
    assert found in refused(written(tmp_path, content))


def test_missing_files_and_folders(tmp_path):
    assert "found no such file" in refused(tmp_path / "none.caffemodel")
    assert "found no such file" in refused(tmp_path)


@pytest.mark.parametrize("number", [7, 100])
def test_depth_costs_nothing(tmp_path, number):
    nested = b""
    for _ in range(3000):
        nested = message(number, nested)
    assert "found" in refused(written(tmp_path, nested))


def test_reading_takes_no_memory_for_the_values(vggm):
    tracemalloc.start()
    layers = read_caffemodel(vggm[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(math.prod(each.shape) for one in layers for each in one.blobs) > 6_000_000
    assert peak < 1_000_000


SMALL = net(
    layer("a", [blob(ARRAY), blob([1.0, 2.0], "unpacked", "unpacked")], stride=2),
    layer("b", [blob(ARRAY, "doubles", "four numbers")], old=True, stride=1),
)


def read_or_refuse(path):
    """Anything but these two ends the test: one line that names the file, or arrays that are what they say."""
    layers, complaint = [], f"{path}: "
    try:
        layers = read_caffemodel(path)
    except OhemError as error:
        complaint = str(error)
    assert complaint.startswith(f"{path}: ")
    assert "\n" not in complaint
    for one in layers:
        assert one.name.isprintable()
        for each in one.blobs:
            assert each.read().shape == each.shape


def test_a_file_cut_anywhere(tmp_path):
    for length in range(len(SMALL)):
        path = written(tmp_path, SMALL[:length])
        read_or_refuse(path)


@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=400)
def test_bytes_changed_anywhere(tmp_path_factory, changes):
    content = bytearray(SMALL)
    for position, value in changes:
        content[position] = value
    read_or_refuse(written(tmp_path_factory.getbasetemp(), bytes(content)))


@given(st.binary(min_size=1, max_size=60))
@settings(deadline=None, max_examples=200)
def test_any_bytes(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    read_or_refuse(written(folder, content))
    read_or_refuse(written(folder, message(100, content)))
    read_or_refuse(written(folder, broken(content)))


# --------------------------------------------- Caffe's layers, from their definitions, and the networks' prototxt files


def convolution(x, weight, bias, stride, pad):
    """(C, H, W) with (O, C, K, K); output sides floor((side + 2 pad - K) / stride) + 1."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    kernel = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None]


def relu(x):
    return np.maximum(x, 0)


def max_pooling(x, kernel, stride):
    """Output sides ceil((side - kernel) / stride) + 1; windows that stick out are cut off."""
    sides = [math.ceil((side - kernel) / stride) + 1 for side in x.shape[1:]]
    pooled = np.empty((len(x), *sides))
    for i in range(sides[0]):
        for j in range(sides[1]):
            window = x[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            pooled[:, i, j] = window.max(axis=(1, 2))
    return pooled


def norm_across_channels(x, size=5, alpha=5e-4, beta=0.75, k=2.0):
    scale = np.empty_like(x)
    for channel in range(len(x)):
        near = x[max(channel - size // 2, 0) : channel + size // 2 + 1]
        scale[channel] = k + alpha / size * (near**2).sum(axis=0)
    return x * scale**-beta


def c_round(value):
    """Half away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def roi_pooling(x, roi, size, scale=0.0625):
    """RoI (x1, y1, x2, y2) in inclusive pixels of the network's input; sides of at least one cell."""
    x1, y1, x2, y2 = (c_round(value * scale) for value in roi)
    height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    pooled = np.zeros((len(x), size, size))
    for i in range(size):
        top = min(max(math.floor(i * height / size) + y1, 0), x.shape[1])
        bottom = min(max(math.ceil((i + 1) * height / size) + y1, 0), x.shape[1])
        for j in range(size):
            left = min(max(math.floor(j * width / size) + x1, 0), x.shape[2])
            right = min(max(math.ceil((j + 1) * width / size) + x1, 0), x.shape[2])
            if bottom > top and right > left:
                pooled[:, i, j] = x[:, top:bottom, left:right].max(axis=(1, 2))
    return pooled


def inner_product(x, weight, bias):
    """(O, I) with the input's values in the order of memory: channel, row, column."""
    return weight @ x.ravel() + bias


POOL2, POOL3, NORM = ("pool", 2, 2), ("pool", 3, 2), ("norm",)


def conv3(*names_inputs_outputs):
    return [("conv", name, a, b, 3, 1, 1) for name, a, b in names_inputs_outputs]


PROTOTXT = {
    "vgg16": [
        *conv3(("conv1_1", 3, 64), ("conv1_2", 64, 64)), POOL2,
        *conv3(("conv2_1", 64, 128), ("conv2_2", 128, 128)), POOL2,
        *conv3(("conv3_1", 128, 256), ("conv3_2", 256, 256), ("conv3_3", 256, 256)), POOL2,
        *conv3(("conv4_1", 256, 512), ("conv4_2", 512, 512), ("conv4_3", 512, 512)), POOL2,
        *conv3(("conv5_1", 512, 512), ("conv5_2", 512, 512), ("conv5_3", 512, 512)),
    ],
    "vgg_cnn_m_1024": [
        ("conv", "conv1", 3, 96, 7, 2, 0), NORM, POOL3,
        ("conv", "conv2", 96, 256, 5, 2, 1), NORM, POOL3,
        *conv3(("conv3", 256, 512), ("conv4", 512, 512), ("conv5", 512, 512)),
    ],
}  # fmt: skip
"""The test networks of the Fast R-CNN release: (conv, name, inputs, outputs, kernel, stride, pad), with ReLU behind."""

POOL_SIZE = {"vgg16": 7, "vgg_cnn_m_1024": 6}
FC = (24, 16)
"""fc6 and fc7 are narrow here: the real ones hold nine tenths of the weights and nothing new to test."""


def made_weights(network, outputs=None):
    """Weights and biases by layer, with the networks' own shapes but for fc6 and fc7; a detector with ``outputs``.

    Activations keep the size of pixels; scores and deltas are smaller, so that softmax and boxes make sense of them.
    """
    rng = np.random.default_rng(0)
    shapes = {op[1]: (op[3], op[2], op[4], op[4]) for op in PROTOTXT[network] if op[0] == "conv"}
    shapes |= {"fc6": (FC[0], 512 * POOL_SIZE[network] ** 2), "fc7": (FC[1], FC[0])}
    if outputs:
        shapes |= {"cls_score": (outputs, FC[1]), "bbox_pred": (4 * outputs, FC[1])}
    scale = {"cls_score": 0.01, "bbox_pred": 0.0001}
    return {
        name: (
            rng.standard_normal(shape, np.float32)
            * np.float32(scale.get(name, 1) * math.sqrt(2 / math.prod(shape[1:]))),
            rng.standard_normal(shape[0], np.float32) * np.float32(scale.get(name, 1)),
        )
        for name, shape in shapes.items()
    }


def made_net(network, weights, old=False, extra=()):
    strides = {op[1]: op[5] for op in PROTOTXT[network] if op[0] == "conv"}
    shape = "four numbers" if old else "packed"
    layers = [
        layer(name, [blob(weight, shape=shape), blob(bias, shape=shape)], old, strides.get(name))
        for name, (weight, bias) in weights.items()
    ]
    return net(*layers, *extra)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("caffe")


@pytest.fixture(scope="module", params=["vgg16", "vgg_cnn_m_1024"])
def released(request, folder):
    """A released detector: the network, its weights, and the file. VGG16's is as a training net is saved."""
    weights = made_weights(request.param, 21)
    twins = [layer(f"{name}_readonly", [blob(np.ones((2, 2)))]) for name in ("fc6", "fc7", "cls_score", "bbox_pred")]
    old = request.param == "vgg_cnn_m_1024"
    content = made_net(request.param, weights, old, () if old else twins)
    path = folder / f"{request.param}.caffemodel"
    path.write_bytes(content)
    return request.param, weights, path


@pytest.fixture(scope="module")
def vggm(folder):
    """VGG_CNN_M_1024 trained on ImageNet: its weights and file."""
    weights = made_weights("vgg_cnn_m_1024")
    fc8 = layer("fc8", [blob(np.zeros((5, FC[1]))), blob(np.zeros(5))])
    (folder / "imagenet.caffemodel").write_bytes(made_net("vgg_cnn_m_1024", weights, extra=[fc8]))
    return weights, folder / "imagenet.caffemodel"


def caffe_forward(network, weights, image, rois):
    """Outputs of every layer, by Caffe's definitions. ``image`` is (H, W, 3) RGB, ``rois`` inclusive pixels."""
    x = image[:, :, ::-1].astype(np.float64) - np.array([102.9801, 115.9465, 122.7717])
    x = x.transpose(2, 0, 1)
    outputs = []
    for kind, *rest in PROTOTXT[network]:
        if kind == "conv":
            name, _, _, _, stride, pad = rest
            x = relu(convolution(x, *weights[name], stride, pad))
        else:
            x = norm_across_channels(x) if kind == "norm" else max_pooling(x, *rest)
        outputs.append(x)
    hidden = [roi_pooling(x, roi, POOL_SIZE[network]) for roi in rois]
    for name in ("fc6", "fc7"):
        hidden = [relu(inner_product(each, *weights[name])) for each in hidden]
        outputs.append(np.stack(hidden))
    predictions = (np.stack([inner_product(each, *weights[n]) for each in hidden]) for n in ("cls_score", "bbox_pred"))
    return [*outputs, *predictions]


@torch.no_grad()
def our_forward(detector, image, boxes):
    """The outputs of the same layers of ours; ``boxes`` are half-open pixels."""
    x = detector.backbone.preprocessing(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255)
    outputs = []
    for module in detector.backbone.features:
        x = module(x)
        if not isinstance(module, torch.nn.Conv2d):
            outputs.append(x[0].clone())
    hidden = detector.head.pool_rois(x, boxes).flatten(1)
    for module in detector.head.fc:
        hidden = torch.relu(module(hidden))
        outputs.append(hidden)
    return [*outputs, detector.head.cls_score(hidden), detector.head.bbox_pred(hidden)]


def test_a_converted_detector_computes_what_caffe_computes_layer_by_layer(released, tmp_path):
    network, weights, path = released
    assert ohem("convert", path, tmp_path / "detector.safetensors") == 0
    detector, _, _ = load_detector(tmp_path / "detector.safetensors")
    image = np.random.default_rng(1).integers(0, 256, (76, 83, 3), dtype=np.uint8)
    # Inside, at the edge, smaller than a cell, the whole image; corners half way between two cells; and corners that
    # would round to another cell if they were half-open.
    rois = np.array(
        [[3, 5, 60, 70], [30, 20, 82, 75], [41, 33, 42, 34], [0, 0, 82, 75], [24, 8, 56, 40], [10, 10, 39, 55]]
    )
    expected = caffe_forward(network, weights, image, rois)
    boxes = torch.tensor(rois + np.array([0, 0, 1, 1])).float()
    found = our_forward(detector, image, boxes)
    assert len(found) == len(expected) == len(PROTOTXT[network]) + 4
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert np.abs(ours.numpy() - theirs).max() < 1e-4 * np.abs(theirs).max()
    # The whole, as the detector is used.
    with torch.no_grad():
        scores, _ = detector([torch.from_numpy(image).permute(2, 0, 1)], [boxes])[0]
    logits = expected[-2] - expected[-2].max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert probabilities.max() < 0.99
    assert np.allclose(scores.numpy(), probabilities, atol=1e-3)


# ------------------------------------------------------------------------------------------ which network, what is told


def test_a_released_detector(released):
    network, weights, path = released
    found = read_network(path)
    assert found.network == network
    assert found.fc == FC
    assert found.shapes == {name: weight.shape for name, (weight, _) in weights.items()}
    assert set(found.predictors) == {
        f"{name}.{part}" for name in ("cls_score", "bbox_pred") for part in ("weight", "bias")
    }
    twins = ("fc6_readonly", "fc7_readonly", "cls_score_readonly", "bbox_pred_readonly")
    assert found.left_out == (twins if network == "vgg16" else ())


def test_a_classifier_of_images(vggm):
    found = read_network(vggm[1])
    assert found.predictors == {}
    assert found.left_out == ("fc8",)
    assert np.array_equal(found.state["features.0.weight"], vggm[0]["conv1"][0])
    assert np.array_equal(found.state["classifier.3.bias"], vggm[0]["fc7"][1])


def tiny(names, **others):
    """Layers of one value, but for those given with an array of weights and a stride."""
    content = []
    for name in names:
        weight, stride = others.get(name, (np.zeros((1, 1)), None))
        content.append(layer(name, [blob(weight), blob(np.zeros(len(weight)))], stride=stride))
    return net(*content)


NAMES = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
CONV1, CONV2 = np.zeros((96, 3, 7, 7)), np.zeros((256, 96, 5, 5))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            tiny(["conv1", "fc6"]),
            "layers: found conv1 (1, 1), fc6 (1, 1); allowed: conv1_1, conv1_2, conv2_1, conv2_2, conv3_1, conv3_2,"
            " conv3_3, conv4_1, conv4_2, conv4_3, conv5_1, conv5_2, conv5_3, fc6, fc7 (vgg16)"
            " or conv1, conv2, conv3, conv4, conv5, fc6, fc7 (vgg_cnn_m_1024)",
        ),
        (tiny(f"layer{i}" for i in range(50)), "layer19 (1, 1), and 30 more; allowed: "),
        (tiny([*NAMES, "fc6"]), "layers: found 'fc6' twice"),
        (  # CaffeNet has the same names
            tiny(NAMES, conv1=(np.zeros((96, 3, 11, 11)), 4)),
            "conv1.blobs[0]: found shape (96, 3, 11, 11); allowed: shape (96, 3, 7, 7) as in vgg_cnn_m_1024",
        ),
        (  # VGG_CNN_S has the same shapes
            tiny(NAMES, conv1=(CONV1, 2), conv2=(CONV2, 1)),
            "conv2: found stride 1; allowed: stride 2 as in vgg_cnn_m_1024",
        ),
        (
            tiny(NAMES, conv1=(np.full((96, 3, 7, 7), np.nan), 2)),
            "conv1.blobs[0]: found values that are not finite",
        ),
        (
            net(*(layer(name, [blob(CONV1 if name == "conv1" else [1.0])], stride=2) for name in NAMES)),
            "conv1: found 1 arrays; allowed: 2, weights and biases",
        ),
        (
            net(*(layer(name, [blob(CONV1), blob(np.zeros((96, 1)))], stride=2) for name in NAMES)),
            "conv1.blobs[1]: found shape (96, 1); allowed: shape (96,)",
        ),
        (b"<html>", "a file of text"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_other_networks_are_refused_with_what_was_found_and_what_is_wanted(tmp_path, content, found):
    assert found in refused(written(tmp_path, content), read_network)


@pytest.mark.parametrize(
    ("name", "shape", "found"),
    [
        ("fc6", (FC[0], 512 * 49), "fc6.blobs[0]: found shape (24, 25088); allowed: shape (any, 18432)"),
        ("fc6", (FC[0], 512, 6, 6), "fc6.blobs[0]: found shape (24, 512, 6, 6); allowed: shape (any, 18432)"),
        ("fc7", (FC[1], 9), "fc7.blobs[0]: found shape (16, 9); allowed: shape (any, 24)"),
        ("bbox_pred", (8, FC[1]), "bbox_pred.blobs[0]: found shape (8, 16); allowed: shape (84, 16)"),
    ],
)
def test_fully_connected_layers_must_fit_each_other(tmp_path, name, shape, found):
    weights = made_weights("vgg_cnn_m_1024", 21)
    weights[name] = (np.zeros(shape, np.float32), np.zeros(shape[0], np.float32))
    assert found in refused(written(tmp_path, made_net("vgg_cnn_m_1024", weights)), read_network)


def test_scores_without_boxes_are_left_out(tmp_path):
    weights = made_weights("vgg_cnn_m_1024", 21)
    del weights["bbox_pred"]
    found = read_network(written(tmp_path, made_net("vgg_cnn_m_1024", weights)))
    assert found.predictors == {}
    assert found.left_out == ("cls_score",)


# ---------------------------------------------------------------------------------------------- as a backbone's weights


def small_spec(network):
    return DetectorSpec(
        backbone=BackboneSpec(name=network, weights="none"), head=HeadSpec(fc=FC, pool_size=POOL_SIZE[network])
    )


def has_weights(detector, weights):
    own = detector.state_dict()
    convolutions = [f"backbone.features.{i}" for i, m in enumerate(detector.backbone.features) if hasattr(m, "stride")]
    convolutions = [name for name in convolutions if f"{name}.weight" in own]
    names = [name for name in weights if name.startswith("conv")] + ["fc6", "fc7"]
    pairs = zip([*convolutions, "head.fc.0", "head.fc.1"], names, strict=True)
    return all(
        np.array_equal(own[f"{ours}.{part}"], array)
        for ours, theirs in pairs
        for part, array in zip(("weight", "bias"), weights[theirs], strict=True)
    )


@pytest.mark.parametrize("converted", [False, True])
def test_a_recipe_names_the_file_or_the_converted_one(vggm, tmp_path, converted):
    weights, path = vggm
    if converted:
        assert ohem("convert", path, tmp_path / "m.safetensors") == 0
        path = tmp_path / "m.safetensors"
    detector = build_detector(small_spec("vgg_cnn_m_1024"), 3)
    detector.backbone.preprocessing = TORCHVISION
    before = detector.head.cls_score.weight.clone()
    load_pretrained(detector, BackboneSpec(name="vgg_cnn_m_1024", weights=str(path)))
    assert has_weights(detector, weights)
    assert detector.backbone.preprocessing == CAFFE
    assert torch.equal(detector.head.cls_score.weight, before)


def test_vgg16_reads_caffes_colours_with_caffes_weights(released):
    network, weights, path = released
    detector = build_detector(small_spec(network), 3)
    load_pretrained(detector, BackboneSpec(name=network, weights=str(path)))
    assert has_weights(detector, weights)
    assert detector.backbone.preprocessing == CAFFE
    load_pretrained(detector, BackboneSpec(name=network, weights=str(path), preprocessing="torchvision"))
    assert detector.backbone.preprocessing == TORCHVISION


@pytest.mark.parametrize(
    ("network", "found"),
    [
        ("vgg16", "found weights of vgg_cnn_m_1024; allowed: weights of vgg16"),
        ("resnet18", "found Caffe's weights; allowed: .safetensors or .pth for resnet18"),
    ],
)
def test_weights_of_another_network(vggm, network, found):
    detector = build_detector(
        DetectorSpec(backbone=BackboneSpec(name=network, weights="none"), head=HeadSpec(fc=(4,))), 1
    )
    assert found in refused(
        vggm[1], lambda path: load_pretrained(detector, BackboneSpec(name=network, weights=str(path)))
    )


def test_another_width_than_the_recipes(vggm):
    spec = small_spec("vgg_cnn_m_1024").model_copy(update={"head": HeadSpec(fc=(FC[0], 9), pool_size=6)})
    with pytest.raises(OhemError, match=r"classifier\.3\.weight: found shape \(16, 24\); allowed: shape \(9, 24\)"):
        load_pretrained(build_detector(spec, 1), BackboneSpec(name="vgg_cnn_m_1024", weights=str(vggm[1])))


# --------------------------------------------------------------------------------------------------- the command, whole


def ohem(*arguments):
    """Run a command in this process; its exit code."""
    before = sys.argv
    sys.argv = ["ohem", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def test_convert_tells_what_it_found(vggm, tmp_path, capsys):
    assert ohem("convert", vggm[1], tmp_path / "m.safetensors") == 0
    told = capsys.readouterr().out
    assert "vgg_cnn_m_1024" in told.splitlines()[0]
    assert "96 x 3 x 7 x 7" in told
    assert f"7 layers, {sum(w.size + b.size for w, b in vggm[0].values()):,} parameters" in told
    assert "1 of 8 layers with weights left out: fc8" in told
    assert f"detector.backbone.weights={tmp_path / 'm.safetensors'}" in told
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["preprocessing"]) == {
            "mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0], "scale": 255.0, "bgr": True,
        }  # fmt: skip


def test_convert_tells_how_far_it_is(vggm, tmp_path):
    told = []
    convert(vggm[1], tmp_path / "m.safetensors", progress=lambda *counts: told.append(counts))
    taken = 4 * sum(w.size + b.size for w, b in vggm[0].values()) // 10**6
    *reading, begun, ended = told
    assert [begun, ended] == [("writing", 0, 1), ("writing", 1, 1)]
    assert [task for task, _, _ in reading] == ["reading, MB"] * 7
    assert {total for _, _, total in reading} == {taken}
    assert sorted(done for _, done, _ in reading)[-1] == reading[-1][1] == taken


def test_convert_answers_programs_too(vggm, tmp_path, capsys):
    assert ohem("convert", vggm[1], tmp_path / "m.safetensors", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(tmp_path / "m.safetensors")
    assert found["shapes"]["conv1"] == [96, 3, 7, 7]
    assert found["left_out"] == ["fc8"]


def test_equal_files_give_equal_files(vggm, tmp_path):
    for name in ("a", "b"):
        assert ohem("convert", vggm[1], tmp_path / f"{name}.safetensors") == 0
    first, second = (hashlib.sha256((tmp_path / f"{name}.safetensors").read_bytes()).digest() for name in "ab")
    assert first == second


def test_a_converted_detector_is_the_papers(released, tmp_path, capsys):
    network, weights, path = released
    assert ohem("convert", path, tmp_path / "d.safetensors") == 0
    assert "20 classes: aeroplane, bicycle, " in capsys.readouterr().out
    detector, spec, classes = load_detector(tmp_path / "d.safetensors")
    recipe = load_recipe(network).detector
    assert spec == recipe.model_copy(
        update={
            "backbone": recipe.backbone.model_copy(update={"weights": "none"}),
            "head": recipe.head.model_copy(update={"fc": FC}),
        }
    )
    assert classes == VOC_CLASSES
    assert detector.backbone.preprocessing == CAFFE
    assert detector.delta_mean.unique().tolist() == [0.0]
    assert detector.delta_std.unique().tolist() == [1.0]
    assert has_weights(detector, weights)
    for name in ("cls_score", "bbox_pred"):
        assert np.array_equal(detector.head.get_submodule(name).weight.detach(), weights[name][0])
        assert np.array_equal(detector.head.get_submodule(name).bias.detach(), weights[name][1])


def test_convert_then_detect(tmp_path, monkeypatch):
    monkeypatch.setenv("OHEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    weights = made_weights("vgg_cnn_m_1024", 3)
    written(tmp_path, made_net("vgg_cnn_m_1024", weights))
    assert ohem("convert", "net.caffemodel", "d.safetensors", "--classes", "cat, dog") == 0
    picture = np.kron(
        np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8)
    )
    Image.fromarray(picture).save("picture.png")
    assert ohem("detect", "d.safetensors", "picture.png", "--threshold", 0, "--workers", 0) == 0
    (found,) = json.loads(Path("detections/detections.json").read_text())["images"]
    assert {one["class"] for one in found["objects"]} == {"cat", "dog"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "net.caffemodel", "d.safetensors", "picture.png", "detections", "cache",
    }  # fmt: skip


def test_nothing_is_written_over(vggm, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    out.write_text("mine")
    assert ohem("convert", vggm[1], out) == 2
    assert f"{out}: found something there already" in capsys.readouterr().err
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "out", "options", "found"),
    [
        (b"<html>", "o.safetensors", [], "found a file of text, beginning with '<html>'"),
        (tiny(NAMES), "o.pth", [], "o.pth: found a file name that ends in '.pth'; allowed: .safetensors"),
        (tiny(["fc8"]), "o.safetensors", [], "layers: found fc8 (1, 1)"),
        ("imagenet", "o.safetensors", ["--classes", "cat"], "found --classes and no cls_score and bbox_pred"),
        ("detector", "o.safetensors", [], "cls_score: found 3 outputs and no --classes; allowed: 2 names"),
        ("detector", "o.safetensors", ["--classes", "a,b,c"], "3 outputs and 3 names in --classes; allowed: 2 names"),
        ("detector", "o.safetensors", ["--classes", "a,a"], "classes: found "),
        ("detector", "o.safetensors", ["--classes", "a,"], "classes: found "),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_wrong_calls_end_with_one_line_and_exit_code_2(tmp_path, capsys, content, out, options, found):
    if isinstance(content, str):
        content = made_net("vgg_cnn_m_1024", made_weights("vgg_cnn_m_1024", 3 if content == "detector" else None))
    path = written(tmp_path, content)
    assert ohem("convert", path, tmp_path / out, *options) == 2
    complaint = capsys.readouterr().err
    assert found in complaint
    assert len(complaint.splitlines()) == 1
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
