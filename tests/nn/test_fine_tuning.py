# SPDX-License-Identifier: Apache-2.0
"""Gradients through quantised linear layers, and the adapters of PEFT on them."""

from __future__ import annotations

import pytest
import torch

import anynpu
from anynpu.nn import QuantizedLinear, StaticQuantLinear, WeightQuantLinear

K, N = 96, 24
UNIT = 1 / 127  # the scale of activations with which a row of the identity matrix is exact
STATIC = anynpu.ActivationScales({"it": UNIT})
CONFIGS = [
    anynpu.W4A16(group_size=32),
    anynpu.W4A16(group_size=64, symmetric=False),
    anynpu.W8A16(),
    anynpu.W4A8(group_size=32),
    anynpu.W8A8(),
    anynpu.W8A8(STATIC),
    anynpu.W8A8Compressed(),
]


def quantised(config: object) -> QuantizedLinear:
    torch.manual_seed(0)
    linear = torch.nn.Linear(K, N)
    torch.nn.init.normal_(linear.weight)
    return config.layer(linear, "it")


def reordered() -> WeightQuantLinear:
    weight = anynpu.W4A16(group_size=32).quantize(torch.randn(N, K))
    order = torch.randperm(K)
    return WeightQuantLinear.from_quantized(
        anynpu.formats.QuantizedWeight(weight.weight, weight.scale, group_size=32, input_order=order)
    )


def static() -> StaticQuantLinear:
    codes = torch.randint(-128, 128, (N, K), dtype=torch.int8)
    bias = torch.randint(-1000, 1000, (N,), dtype=torch.int32)
    return StaticQuantLinear.from_codes(codes, bias, torch.rand(N), torch.tensor([UNIT]), torch.zeros(1))


LAYERS = {**{str(config): lambda config=config: quantised(config) for config in CONFIGS}, "act-order": reordered}


@pytest.mark.parametrize("prepacked", [True, False])
@pytest.mark.parametrize("make", [*LAYERS.values(), static], ids=[*LAYERS, "static"])
def test_the_gradient_is_that_of_the_float_layer(make, prepacked):
    """The layer is linear in rows that its activations represent, so the identity matrix shows its weight."""
    layer = make()
    if prepacked:
        layer.prepack()
    weight = (layer(torch.eye(K)) - layer(torch.zeros(1, K))).t()
    torch.testing.assert_close(layer.dequantized(), weight, rtol=2.0**-20, atol=2.0**-20 * float(weight.abs().max()))
    for shape in ((3, 5, K), (K,)):
        x = torch.randn(shape, requires_grad=True)
        y, gradient = layer(x), torch.randn(*shape[:-1], N)
        assert torch.equal(y, layer(x.detach()))
        y.backward(gradient)
        torch.testing.assert_close(x.grad, gradient @ layer.dequantized())


@pytest.mark.parametrize("prepacked", [True, False])
def test_gradients_compile(prepacked):
    layer, x = quantised(anynpu.W4A16(group_size=32)), torch.randn(4, K, requires_grad=True)
    if prepacked:
        layer.prepack()
    torch.compiler.reset()
    torch.compile(layer, backend="aot_eager")(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantized().sum(0).expand(4, K))


@pytest.mark.parametrize("config", [anynpu.W4A16(group_size=32), anynpu.W8A8()], ids=str)
def test_other_derivatives(config):
    """Forward mode, which sees no gradient that is missing, and the transforms of torch.func."""
    layer, x, tangent = quantised(config), torch.randn(4, K), torch.randn(4, K)
    weight = layer.dequantized()
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (tangent,))[1], tangent @ weight.t())
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent @ weight.t())
    torch.testing.assert_close(torch.func.jacrev(layer)(x[0]), weight)
    torch.testing.assert_close(torch.func.jacfwd(layer)(x[0]), weight)
    gradients = torch.func.vmap(torch.func.grad(lambda row: layer(row).sum()))(x)
    torch.testing.assert_close(gradients, weight.sum(0).expand(4, K))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.LayerNorm(K)
        self.up, self.down = torch.nn.Linear(K, 4 * N), torch.nn.Linear(4 * N, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.mark.parametrize(
    "config", [anynpu.W4A16(group_size=32), anynpu.W4A8(32), anynpu.W8A8(), anynpu.W8A8Compressed()]
)
def test_peft_trains_saves_and_loads_adapters(config, tmp_path):
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(r=4, target_modules=["up", "down"], init_lora_weights=False)
    x = torch.randn(5, K)
    before = anynpu.quantize_(Model(), config)(x)
    model = peft.get_peft_model(anynpu.quantize_(Model(), config), options)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (model(x) - x).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    with model.disable_adapter():
        assert torch.equal(model(x), before)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(anynpu.quantize_(Model(), config), tmp_path)
    assert torch.equal(loaded(x), model(x))
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="adapters cannot be merged into a .*Linear, whose weight is quantised"):
            merge()
    assert torch.equal(model(x), loaded(x))
    assert torch.equal(model.unload()(x), before)
    with pytest.raises(ValueError, match="unsupported variant .*use_dora"):
        peft.get_peft_model(anynpu.quantize_(Model(), config), peft.LoraConfig(target_modules=["up"], use_dora=True))
