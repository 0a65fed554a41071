"""Matrix products by oneDNN are those of the layer, and are left to the layer wherever more than a product is asked for."""

import pytest
import torch
from torch import nn

from ohem.models import products
from ohem.models.products import MOST, STEP, blocks, linear, onednn_fits

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture(autouse=True)
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """No processor of Intel's, where MKL would multiply."""
    monkeypatch.setattr(products, "processor_name", lambda: "AMD EPYC 9B14")


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(300, 70)


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 65, 100, 128, 500, 1200])
@pytest.mark.parametrize("bias", [True, False])
def test_the_product_is_the_layers(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, values = nn.Linear(300, 70, bias=bias), torch.randn(rows, 300)
    with torch.no_grad():
        exact = nn.functional.linear(values.double(), layer.weight.double(), layer.bias.double() if bias else None)
        found = linear(layer, values)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most", [1, STEP, 334, MOST])
def test_blocks_cover_all_rows_and_have_few_lengths(most: int) -> None:
    """Each length that oneDNN meets costs up to 2 MB for good, and images have any number of different RoIs."""
    lengths: set[int] = set()
    for rows in range(2500):
        found = list(blocks(rows, most))
        covered = {row for first, last in found for row in range(first, last)}
        assert covered == set(range(rows))
        assert sum(last - first for first, last in found) < rows + STEP
        lengths |= {last - first for first, last in found if rows >= STEP}
    assert all(length % STEP == 0 for length in lengths)
    assert max(lengths) <= max(STEP, most)


def test_columns_of_a_larger_matrix_are_multiplied_right(layer: nn.Linear) -> None:
    values = torch.randn(100, 600)[:, ::2]
    with torch.no_grad():
        torch.testing.assert_close(linear(layer, values), layer(values), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not HAS_ONEDNN, reason="this torch has no oneDNN")
def test_one_dnn_is_used_for_plain_float32_products(layer: nn.Linear) -> None:
    with torch.no_grad():
        assert onednn_fits(layer, torch.rand(100, 300))


@pytest.mark.parametrize("name", ["Intel(R) Xeon(R) Processor", "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel"])
def test_products_on_intel_s_processors_are_mkl_s(layer: nn.Linear, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "processor_name", lambda: name)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    with torch.no_grad():
        assert not onednn_fits(layer, torch.rand(100, 300))
        assert torch.equal(linear(layer, values := torch.rand(100, 300)), layer(values))


def test_gradients_are_left_to_the_layer(layer: nn.Linear) -> None:
    values = torch.rand(100, 300, requires_grad=True)
    linear(layer, values).sum().backward()
    torch.testing.assert_close(values.grad, layer.weight.sum(dim=0).expand(100, -1))


@torch.no_grad()
def test_a_hook_runs(layer: nn.Linear) -> None:
    seen: list[int] = []
    layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    linear(layer, torch.rand(100, 300))
    assert seen == [100]


@torch.no_grad()
def test_other_layers_and_precisions_are_left_to_the_layer(layer: nn.Linear) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    doubled, values = Doubled(300, 70), torch.rand(100, 300)
    assert torch.equal(linear(doubled, values), doubled(values))
    assert linear(layer.double(), values.double()).dtype == torch.float64
    layer.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(layer, values).dtype == torch.bfloat16
