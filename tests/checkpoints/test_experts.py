# SPDX-License-Identifier: Apache-2.0
"""Mixtures of experts in folders of other producers, against models with a plain layer for each matrix."""

from __future__ import annotations

import json
import shutil

import checkpoint_folders as folders
import pytest
import torch
from checkpoint_folders import logits, mixture_of
from safetensors.torch import load_file, save_file

import anynpu
from anynpu.checkpoints import convert_checkpoint
from anynpu.nn import LinearExperts, QuantMoE, RoutedExperts

CASES = {
    "gptq, Qwen3": lambda folder: folders.gptq(mixture_of("qwen3_moe"), folder),
    "gptq, Mixtral, act-order": lambda folder: folders.gptq(mixture_of("mixtral"), folder, act_order=True),
    "gptq, 8 bits": lambda folder: folders.gptq(mixture_of("qwen3_moe"), folder, bits=8, group=-1),
    "gptq, an expert in float": lambda folder: folders.gptq(
        mixture_of("qwen3_moe"), folder, skip=("lm_head", "model.layers.1.mlp.experts.3.down_proj")
    ),
    "gptq, Qwen3-Next": lambda folder: folders.gptq(mixture_of("qwen3_next"), folder),
    "awq, Qwen2": lambda folder: folders.awq(mixture_of("qwen2_moe"), folder, shards=2),
    "awq, Mixtral": lambda folder: folders.awq(mixture_of("mixtral"), folder),
    "pack-quantized, DeepSeek-V3": lambda folder: folders.compressed_weights(mixture_of("deepseek_v3"), folder),
    "pack-quantized, 8 bits": lambda folder: folders.compressed_weights(mixture_of("olmoe"), folder, bits=8, group=0),
    "W8A8, Qwen3": lambda folder: folders.compressed_int8(mixture_of("qwen3_moe"), folder),
    "W8A8, Mixtral": lambda folder: folders.compressed_int8(mixture_of("mixtral"), folder),
    "W8A8, DeepSeek-V2": lambda folder: folders.compressed_int8(mixture_of("deepseek_v2"), folder),
    "W8A8, GLM-4": lambda folder: folders.compressed_int8(mixture_of("glm4_moe"), folder),
    "W8A8, dots.llm1": lambda folder: folders.compressed_int8(mixture_of("dots1"), folder),
    "W8A8, Qwen3.5": lambda folder: folders.compressed_int8(mixture_of("qwen3_5_moe_text"), folder),
    "gptq, Hunyuan": lambda folder: folders.gptq(mixture_of("hunyuan_v1_moe"), folder),
    "awq, MiniMax-M2": lambda folder: folders.awq(mixture_of("minimax_m2"), folder),
    "pack-quantized, ERNIE": lambda folder: folders.compressed_weights(mixture_of("ernie4_5_moe"), folder),
    "pack-quantized, MiniMax": lambda folder: folders.compressed_weights(mixture_of("minimax"), folder),
    "W8A8, Phi": lambda folder: folders.compressed_int8(mixture_of("phimoe"), folder),
    "W8A8, Jamba": lambda folder: folders.compressed_int8(mixture_of("jamba"), folder),
    "W8A8 static": lambda folder: folders.compressed_int8(mixture_of("qwen2_moe"), folder, static=True),
}


def experts_of(model):
    return [module for module in model.modules() if isinstance(module, (RoutedExperts, LinearExperts))]


def require_close(got, want, tolerance):
    assert torch.allclose(got, want, rtol=0, atol=tolerance * float(want.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_logits_of_the_dequantised_model(case, tmp_path):
    want = logits(CASES[case](tmp_path))
    model = anynpu.load_checkpoint(tmp_path)
    kind = RoutedExperts if "W8A8" in case and "static" not in case else LinearExperts
    assert experts_of(model)
    assert all(type(each) is kind for each in experts_of(model))
    # As in test_load.py: sums in another order, and int8 activations at a border between two codes.
    require_close(logits(model), want, 2e-2 if "W8A8" in case else 2e-5)


@pytest.mark.parametrize("kind", folders.MIXTURES)
def test_float_experts(kind, tmp_path):
    model = mixture_of(kind)
    folders.write(model, tmp_path, {}, None)
    loaded = anynpu.load_checkpoint(tmp_path)
    assert not experts_of(loaded)
    require_close(logits(loaded), logits(model), 2e-5)


class FakeInt4Linear(torch.nn.Module):
    """Int4 codes ``[N, K]``, scales ``[N, G]`` and int8 activations with a scale for each row, in float64."""

    def __init__(self, codes, scale):
        super().__init__()
        self.codes = codes
        self.weight = codes.double() * scale.double().repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)

    def forward(self, x):
        step = x.abs().amax(-1, keepdim=True) / 127
        return ((x / step).round().double() @ self.weight.t() * step.double()).to(x.dtype)


def ascend(folder, model, groups, packed=True):
    """A folder of msModelSlim: experts W4A8_DYNAMIC, shared experts W8A8_DYNAMIC, the rest FLOAT."""
    plain, quantized, types = dict(model.state_dict()), {}, {}
    generator = torch.Generator().manual_seed(4)
    for name, linear in folders.linears_of(model).items():
        n, k = linear.weight.shape
        if ".experts." in name:
            codes = torch.randint(-8, 8, (n, k), generator=generator, dtype=torch.int8)
            scale = torch.rand(n, 1, generator=generator) * 1e-2 + 1e-3
            second = torch.rand(n, k // 32, generator=generator) + 0.5 if groups else torch.ones(n, 1)
            stand_in, kind = FakeInt4Linear(codes, scale * second), "W4A8_DYNAMIC"
            stored = (codes[0::2] & 15) | (codes[1::2] << 4) if packed else codes
            tensors = {"weight": stored, "weight_scale": scale, "weight_offset": torch.zeros(n, 1)}
            if groups:
                tensors |= {"weight_scale_second": second, "weight_offset_second": torch.zeros(n, k // 32)}
            if packed:
                sums = 8 * stand_in.weight.float().sum(1, keepdim=True)
                tensors["scale_bias"] = (sums / 16).expand(n, 16) if name.endswith("down_proj") else sums
        elif ".shared_experts." in name:
            codes = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
            scale = torch.rand(n, 1, generator=generator) * 1e-3 + 1e-4
            stand_in, kind = folders.FakeInt8Linear(codes, scale[:, 0]), "W8A8_DYNAMIC"
            tensors = {"weight": codes, "weight_scale": scale, "weight_offset": torch.zeros(n, 1)}
        else:
            continue
        quantized |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
        types |= {f"{name}.{key}": kind for key in tensors}
        parent, _, child = name.rpartition(".")
        block = model.get_submodule(parent)
        block.__setitem__(child, stand_in) if ".experts." in name else setattr(block, child, stand_in)
    layers = {name.rpartition(".")[0] for name in quantized}
    tensors = {name: tensor for name, tensor in plain.items() if name.rpartition(".")[0] not in layers} | quantized
    folder.mkdir()
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "a.safetensors")
    types = {name: types.get(name, "FLOAT") for name in tensors}
    head = {"model_quant_type": "W4A8_DYNAMIC", **({"version": "1.0.0", "group_size": 32 * groups} if packed else {})}
    (folder / "quant_model_description.json").write_text(json.dumps({**head, **types}))
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), "dtype": "float32"}))
    return model


@pytest.mark.parametrize(("groups", "packed"), [(True, True), (True, False), (False, True)])
def test_w4a8_of_ascend(groups, packed, tmp_path):
    model = ascend(tmp_path / "in", mixture_of("deepseek_v3"), groups, packed)
    loaded = anynpu.load_checkpoint(tmp_path / "in")
    (own,) = experts_of(loaded)
    assert (own.own.bits, own.own.group_size) == (4, 32 * groups)
    require_close(logits(loaded), logits(model), 2e-2)


def w4a8(groups):
    return lambda folder: ascend(folder, mixture_of("deepseek_v3"), groups)


CONVERTED = {
    "W8A8, Qwen2": lambda folder: folders.compressed_int8(mixture_of("qwen2_moe"), folder),
    "W8A8, Mixtral": CASES["W8A8, Mixtral"],
    "W8A8, DeepSeek-V2": CASES["W8A8, DeepSeek-V2"],
    "W8A8, Phi": CASES["W8A8, Phi"],
    "W4A8 in groups": w4a8(True),
    "W4A8 by channel": w4a8(False),
}


def require_same_state(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def require_same_bits(first, second):
    require_same_state(first, second)
    assert torch.equal(logits(first), logits(second))


@pytest.mark.parametrize("case", CONVERTED)
def test_around_and_back(case, tmp_path):
    CONVERTED[case](tmp_path / "in")
    want = anynpu.load_checkpoint(tmp_path / "in")
    source = tmp_path / "in"
    for layout in ("msmodelslim", "compressed-tensors", "anynpu", "msmodelslim"):
        target = tmp_path / f"{source.name}-{layout}"
        convert_checkpoint(source, target, layout)
        require_same_bits(anynpu.load_checkpoint(target), want)
        source = target


@pytest.mark.parametrize("case", ["gptq, Qwen3", "awq, Qwen2", "gptq, an expert in float", "W8A8 static"])
def test_experts_with_float_activations(case, tmp_path):
    CASES[case](tmp_path / "in")
    want = anynpu.load_checkpoint(tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "own", "anynpu")
    require_same_bits(anynpu.load_checkpoint(tmp_path / "own"), want)
    convert_checkpoint(tmp_path / "own", tmp_path / "out", "compressed-tensors")
    require_same_state(anynpu.load_checkpoint(tmp_path / "out"), want)


def test_the_order_of_inputs_is_written(tmp_path):
    CASES["gptq, Mixtral, act-order"](tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "out", "compressed-tensors")
    got, want = (logits(anynpu.load_checkpoint(tmp_path / name)) for name in ("out", "in"))
    require_close(got, want, 1e-5)  # the order within a group is not kept


def test_float_experts_that_files_stack(tmp_path):
    """Granite's experts are 3-D in files too, so that its producers leave them float."""
    want = logits(folders.gptq(folders.model_of("granitemoe", num_local_experts=4), tmp_path / "in"))
    require_close(logits(anynpu.load_checkpoint(tmp_path / "in")), want, 2e-5)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", "compressed-tensors")
    files = [next((tmp_path / folder).glob("*.safetensors")) for folder in ("in", "out")]
    names = [set(load_file(file)) for file in files]
    assert {name for name in names[0] if "moe" in name} == {name for name in names[1] if "moe" in name}


def test_vllm_ascend_reads_no_experts_with_float_activations(tmp_path):
    CASES["gptq, Qwen3"](tmp_path / "in")
    with pytest.raises(ValueError, match="layer .*.experts.0.gate_proj: .*experts with float activations"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out", "msmodelslim")


@pytest.mark.parametrize("kind", ["qwen2_moe", "deepseek_v3", "mixtral"])
def test_blocks_that_quantize_made(kind, tmp_path):
    """QuantMoE, saved beside a configuration: codes and scales reach other layouts."""
    folders.write(mixture_of(kind), tmp_path / "float", {}, None)
    model = anynpu.quantize_(anynpu.load_checkpoint(tmp_path / "float"), anynpu.W8A8(), skip=("lm_head",))
    blocks = [module for module in model.modules() if isinstance(module, QuantMoE)]
    anynpu.save_quantized(model, tmp_path / "own")
    shutil.copyfile(tmp_path / "float" / "config.json", tmp_path / "own" / "config.json")
    for layout in ("msmodelslim", "compressed-tensors"):
        convert_checkpoint(tmp_path / "own", tmp_path / layout, layout)
        loaded = anynpu.load_checkpoint(tmp_path / layout)
        for block, experts in zip(blocks, experts_of(loaded), strict=True):
            for name, buffer in block.routed.state_dict().items():
                assert torch.equal(experts.own.state_dict()[name], buffer)
        # The shared expert of QuantMoE is rounded to bfloat16, and quantised with the tokens of the others.
        require_close(logits(loaded), logits(model), 2e-2)


def test_blocks_of_granite_that_quantize_made(tmp_path):
    model = folders.model_of("granitemoe", num_local_experts=4)
    anynpu.quantize_(model, anynpu.W8A8(), skip=("lm_head",))
    assert any(isinstance(module, QuantMoE) for module in model.modules())
    model.save_pretrained(tmp_path / "own")
    assert torch.equal(logits(anynpu.load_checkpoint(tmp_path / "own")), logits(model))
    for layout in ("msmodelslim", "compressed-tensors"):
        with pytest.raises(ValueError, match="must have experts that files hold one by one, got GraniteMoeExperts"):
            convert_checkpoint(tmp_path / "own", tmp_path / layout, layout)


def test_the_layout_that_vllm_ascend_reads(tmp_path):
    """Names, dtypes and shapes that its loader gives the experts' tensors."""
    w4a8(True)(tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "out", "msmodelslim")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    tensors, prefix = load_file(file), "model.layers.1.mlp.experts.5.down_proj."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in own.items()} == {
        "weight": (torch.int8, (32, 32)),
        "weight_scale": (torch.float32, (64, 1)),
        "weight_offset": (torch.float32, (64, 1)),
        "weight_scale_second": (torch.float32, (64, 1)),
        "weight_offset_second": (torch.int64, (64, 1)),
        "scale_bias": (torch.float32, (64, 16)),
    }
    description = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    assert description["group_size"] == 32
    assert description["model.layers.1.mlp.gate.weight"] == "FLOAT"
    assert {description[prefix + name] for name in own} == {"W4A8_DYNAMIC"}


def test_the_configuration_that_vllm_reads(tmp_path):
    CASES["W8A8, Mixtral"](tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    routers = [f"model.layers.{i}.block_sparse_moe.gate" for i in range(2)]
    assert sorted(config["ignore"]) == sorted(["lm_head", *routers])
    names = load_file(next((tmp_path / "out").glob("*.safetensors"))).keys()
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight_scale" in names


DOWN = "model/layers/1/mlp/experts/2/down_proj/"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {f"{DOWN.replace('down', 'up')}weight_scale_second": torch.ones(32, 1)},
            "up_proj must have the group size of other experts",
        ),
        ({f"{DOWN}weight_offset": torch.ones(64, 1)}, "down_proj must have no offset, order of inputs or bias"),
        ({f"{DOWN}weight": torch.zeros(30, 32, dtype=torch.int8)}, "experts.2.down_proj: .*weight_scale must have"),
        ({f"{DOWN}weight_scale": torch.full((64, 1), torch.nan)}, "experts.2.down_proj: .*weight_scale must be finite"),
        ({"model/layers/1/mlp/experts/9/up_proj/weight": torch.zeros(1)}, "must name the type of .*experts.9.up_proj"),
    ],
)
def test_damaged_experts_of_ascend(changes, sentence, tmp_path):
    w4a8(True)(tmp_path / "in")
    changed(tmp_path / "in" / "a.safetensors", changes)
    with pytest.raises((TypeError, ValueError), match=sentence) as caught:
        anynpu.load_checkpoint(tmp_path / "in")
    assert str(caught.value).startswith("load_checkpoint: ")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            dict.fromkeys([f"{DOWN}{key}" for key in ("qweight", "qzeros", "scales", "g_idx")]),
            "lack .*2.down_proj.weight",
        ),
        ({f"{DOWN}scales": None}, "layer model.layers.1.mlp.experts.2.down_proj: .* missing scales"),
        ({"model/layers/1/mlp/experts/8/up_proj/qweight": torch.ones(1)}, "experts.8.up_proj' that the model lacks"),
        ({"model/layers/0/mlp/experts/0/up_proj/qweight": torch.ones(1)}, "experts.0.up_proj' that the model lacks"),
        ({"model/layers/1/mlp/gate/qweight": torch.ones(1)}, "mlp.gate of the files must be a Linear"),
    ],
)
def test_damaged_experts(changes, sentence, tmp_path):
    folders.gptq(mixture_of("qwen3_moe"), tmp_path)
    changed(tmp_path / "model.safetensors", changes)
    with pytest.raises(ValueError, match=sentence) as caught:
        anynpu.load_checkpoint(tmp_path)
    assert str(caught.value).startswith("load_checkpoint: ")


def test_a_quantised_router(tmp_path):
    folders.gptq(mixture_of("hunyuan_v1_moe"), tmp_path)
    changed(tmp_path / "model.safetensors", {"model/layers/1/mlp/gate/wg/qweight": torch.ones(1)})
    with pytest.raises(ValueError, match="layer model.layers.1.mlp.gate.wg must be float"):
        anynpu.load_checkpoint(tmp_path)


def test_float_experts_that_are_missing(tmp_path):
    model = mixture_of("qwen3_moe")
    folders.gptq(model, tmp_path, skip=["lm_head", *(name for name in folders.linears_of(model) if "experts" in name)])
    changed(tmp_path / "model.safetensors", {f"{DOWN}weight": None})
    with pytest.raises(ValueError, match="the files lack model.layers.1.mlp.experts.2.down_proj.weight"):
        anynpu.load_checkpoint(tmp_path)


def changed(file, changes):
    tensors = load_file(file) | {name.replace("/", "."): value for name, value in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


def test_routers_stay_float32(tmp_path):
    """A bfloat16 model of DeepSeek-V3 chooses experts by a float32 bias."""
    folders.compressed_int8(mixture_of("deepseek_v3"), tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "own", "anynpu")
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    want = load_file(tmp_path / "in" / "model.safetensors")[bias]
    for name in ("in", "own"):
        assert torch.equal(anynpu.load_checkpoint(tmp_path / name, torch.bfloat16).get_buffer(bias), want)


def test_blocks_for_drafts_are_left_out(tmp_path):
    """DeepSeek-V3 has a layer 61 that drafts tokens, which transformers leaves out."""
    model = folders.compressed_int8(mixture_of("deepseek_v3"), tmp_path)
    changed(tmp_path / "model.safetensors", {"model.layers.61.mlp.experts.0.up_proj.weight_scale": torch.ones(1)})
    require_close(logits(anynpu.load_checkpoint(tmp_path)), logits(model), 2e-2)


def test_descriptions_of_other_experts(tmp_path):
    CASES["W8A8, Qwen3"](tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "own", "anynpu")
    path = tmp_path / "own" / "anynpu_quantized.json"
    path.write_text(path.read_text().replace('"experts": 8', '"experts": 9'))
    with pytest.raises(ValueError, match="must have .experts, hidden, intermediate. = .9, 64, 32., got .8, 64, 32."):
        anynpu.load_checkpoint(tmp_path / "own")
