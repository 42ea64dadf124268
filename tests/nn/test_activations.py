# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import anynpu
from anynpu.quantization.activations import SCALES_FILE


class Branches(torch.nn.Module):
    """Two inputs, a layer under two names, one called by keyword, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.left = torch.nn.Linear(2, 2, bias=False)
        self.again = self.left
        self.right = torch.nn.Linear(2, 2, bias=False)
        self.unused = torch.nn.Linear(2, 2)

    def forward(self, a, b):
        return self.left(a) + self.again(2 * a) + self.right(input=b)


def test_scales_are_the_largest_magnitudes_over_127():
    a, b = torch.tensor([[1.0, -3.0]]), torch.tensor([[0.5, 0.25]])
    batches = [(a, b), {"a": a / 2, "b": -4 * b}, (a[:0], b[:0])]
    scales = anynpu.calibrate_activations(Branches(), batches).scales
    assert scales == {"left": 6 / 127, "again": 6 / 127, "right": 2 / 127}


def test_within_the_sample_nothing_saturates():
    model = torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False))
    batches = torch.randn(5, 8, 16, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([anynpu.calibrate_activations(model, batches).scales["0"]])
    codes = anynpu.quantize(batches.flatten(0, 1), scale, None, torch.int8)
    assert codes.abs().max() == 127
    assert ((codes * scale - batches.flatten(0, 1)).abs() <= scale / 2 * (1 + 2.0**-20)).all()


def test_the_model_is_as_it_was():
    model = Branches()
    with pytest.raises(TypeError):
        anynpu.calibrate_activations(model, [torch.ones(1, 2)])  # forward wants two
    assert not model.left._forward_pre_hooks and not model.right._forward_pre_hooks


def test_inputs_that_are_always_zero_get_a_usable_scale():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    scales = anynpu.calibrate_activations(model, [torch.zeros(1, 4)])
    layer = anynpu.quantize_(model, anynpu.W8A8(scales))[0]
    assert torch.equal(layer(torch.zeros(1, 4))[0], layer.bias)


@pytest.mark.parametrize("scale", [torch.ones(2), torch.tensor([0.0]), torch.tensor([torch.nan]), torch.tensor([-1.0])])
def test_foreign_scales_are_refused(tmp_path, scale):
    save_file({"up": scale}, tmp_path / "activation_scales.safetensors")
    with pytest.raises(ValueError, match="ActivationScales.load: the scale of 'up' must be one finite number above 0"):
        anynpu.ActivationScales.load(tmp_path)


def test_saved_and_loaded(tmp_path):
    scales = anynpu.calibrate_activations(torch.nn.Sequential(torch.nn.Linear(4, 4)), [torch.rand(3, 4)])
    assert scales.save(tmp_path).name == SCALES_FILE
    # float32 in the file, which is what the layers hold
    assert anynpu.ActivationScales.load(tmp_path).scales == {
        name: float(torch.tensor(scale)) for name, scale in scales.scales.items()
    }


@pytest.mark.parametrize("values", [[float("nan"), 1.0], [1.0, float("nan")], [float("inf"), 1.0]])
def test_activations_must_be_finite(values):
    model = torch.nn.Sequential(torch.nn.Linear(1, 4))
    with pytest.raises(ValueError, match="the inputs of '0' must be finite"):
        anynpu.calibrate_activations(model, [torch.tensor([[value]]) for value in values])


def test_no_batch_is_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        anynpu.calibrate_activations(Branches(), [])
