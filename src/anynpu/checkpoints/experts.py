# SPDX-License-Identifier: Apache-2.0
"""Routed experts: in files three linear layers each, in a model of transformers one module of 3-D parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from anynpu._check import require
from anynpu.checkpoints.folder import CONFIG, OP
from anynpu.checkpoints.model import has, install
from anynpu.formats.quantized_weight import QuantizedWeight
from anynpu.nn import (
    LinearExperts,
    QuantExperts,
    QuantizedLinear,
    QuantLinear,
    QuantMoE,
    RoutedExperts,
    WeightQuantLinear,
)
from anynpu.quantization.moe_blocks import EXPERTS, is_experts, require_silu, sizes_of_experts

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_MIXTRAL = (("block_sparse_moe", "mlp"), ("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
# By model_type, parts of the names in files and what they are in the model.
_NAMES = {
    "mixtral": _MIXTRAL,
    "minimax": _MIXTRAL,
    "minimax_m2": _MIXTRAL,
    "phimoe": (("block_sparse_moe.gate", "mlp.router"), *_MIXTRAL),
    "ernie4_5_moe": (("mlp.moe_statics", "mlp.gate.moe_statics"),),
    "granitemoe": (
        ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
        ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
        ("block_sparse_moe.router.layer", "block_sparse_moe.router"),
    ),
}


def name_in_model(model: torch.nn.Module, name: str) -> str:
    """What the model calls a module or tensor of its files."""
    return _renamed(name, _NAMES.get(model.config.model_type, ()))


def name_in_files(model: torch.nn.Module, name: str) -> str:
    """The inverse of :func:`name_in_model`."""
    return _renamed(name, [(own, part) for part, own in _NAMES.get(model.config.model_type, ())])


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    dotted = f".{name}."
    for old, new in pairs:
        dotted = dotted.replace(f".{old}.", f".{new}.")
    return dotted[1:-1]


def split_experts(model: torch.nn.Module, layers: Iterable[str]) -> list[str]:
    """Puts a linear layer for each matrix in the place of experts that have one of ``layers``; returns their names.

    Raises:
        ValueError: experts that compute something else.
    """
    named = {layer.partition(".experts.")[0] + ".experts" for layer in layers if ".experts." in layer}
    split = [name for name, module in model.named_modules() if name in named and hasattr(module, "down_proj")]
    for name in split:
        experts = model.get_submodule(name)
        kind = type(experts).__name__
        require(OP, is_experts(experts), f"{name} must be one of {', '.join(sorted(EXPERTS))}, got {kind}")
        require_silu(experts.act_fn)
        install(model, name, LinearExperts(*sizes_of_experts(experts), experts.down_proj.dtype, "meta"))
    return split


def join_experts(model: torch.nn.Module, name: str, int8_activations: Callable[[str], bool]) -> None:
    """Makes one operand of experts that all quantise their activations at run time; leaves others as they are.

    ``int8_activations`` says of an int4 layer whether its activations are int8.

    Raises:
        ValueError: int4 weights for int8 activations that the operator does not take.
    """
    experts = model.get_submodule(name)
    layers = {f"{name}.{i}.{own}": getattr(each, own) for i, each in enumerate(experts) for own in PROJECTIONS}
    if all(_is_dynamic(layer) for layer in layers.values()):
        bits, group_size = 8, 0
    elif any(int8_activations(place) for place in layers):
        bits, group_size = 4, _group_size(layers, int8_activations)
    else:
        return
    try:
        parts = [QuantExperts.from_codes(*_operands(each), bits, group_size) for each in experts]
    except ValueError as error:
        raise ValueError(f"{OP}: {name}: {error}") from error
    install(model, name, RoutedExperts.from_experts(QuantExperts.joined(parts)))


def _is_dynamic(layer: torch.nn.Module) -> bool:
    return isinstance(layer, QuantLinear) and layer.input_scale is None and layer.bias is None


def _group_size(layers: dict[str, torch.nn.Module], int8_activations: Callable[[str], bool]) -> int:
    """The group size, 0 for channels, of int4 layers that may become one operand."""
    channels = all(getattr(layer, "group_size", None) == 0 for layer in layers.values())
    sizes = set()
    for place, layer in layers.items():
        int4 = isinstance(layer, WeightQuantLinear) and layer.bits == 4 and int8_activations(place)
        require(
            OP, int4, f"{place} must be int4 with int8 activations as other experts are, got {type(layer).__name__}"
        )
        plain = all(each is None for each in (layer.offset, layer.input_order, layer.bias))
        require(OP, plain, f"{place} must have no offset, order of inputs or bias beside int8 activations")
        sizes.add(0 if channels else layer.group_size or layer.in_features)
        one = f"{place} must have the group size of other experts beside int8 activations, got {sorted(sizes)}"
        require(OP, len(sizes) == 1, one)
    return sizes.pop()


def _operands(expert: torch.nn.Module) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Codes int8 ``[1, N, K]`` and scales ``[1, N, G]`` of gate and up, one below the other, and of down."""
    gate, up, down = (_codes(getattr(expert, own)) for own in PROJECTIONS)
    stacked = tuple(torch.cat(pair) for pair in zip(gate, up, strict=True))
    return tuple(tuple(each.unsqueeze(0) for each in pair) for pair in (stacked, down))


def _codes(layer: QuantLinear | WeightQuantLinear) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(layer, QuantLinear):
        return layer.codes(), layer.scale[:, None]
    return layer.codes(), layer.scale.reshape(-1, layer.out_features).t()


def divide_experts(model: torch.nn.Module, empty: Callable[[], torch.nn.Module]) -> set[str]:
    """The inverse of :func:`join_experts`, and blocks of transformers in the place of each :class:`QuantMoE`.

    ``empty`` makes the model with its blocks on the device meta.

    Returns:
        The names of int4 layers whose activations are int8.

    Raises:
        ValueError: experts for which no layout has a place: Granite's.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, QuantMoE)}
    if blocks:
        source = empty()
        for name, moe in blocks.items():
            block = source.get_submodule(name)
            sentence = f"{name} must have experts that files hold one by one, got {type(block.experts).__name__}"
            require("convert_checkpoint", is_experts(block.experts), sentence)
            install(model, name, _block(block, moe))
    int4 = set()
    for name, module in list(model.named_modules()):
        if isinstance(module, RoutedExperts):
            install(model, name, _divided(module.own))
            if module.own.bits == 4:
                int4 |= {f"{name}.{i}.{own}" for i in range(module.own.experts) for own in PROJECTIONS}
    return int4


def _block(block: torch.nn.Module, moe: QuantMoE) -> torch.nn.Module:
    """A block on the device meta with the values of its quantised layer."""
    block.experts = RoutedExperts.from_experts(moe.routed)
    block.gate.weight = torch.nn.Parameter(moe.router, requires_grad=False)
    if moe.router_bias is not None:
        block.gate.e_score_correction_bias = moe.router_bias
    if moe.shared is not None:
        shared = block.shared_expert if hasattr(block, "shared_expert") else block.shared_experts
        for own, layer in _layers(moe.shared).items():
            setattr(shared, own, layer)
    if moe.shared_gate is not None:
        block.shared_expert_gate.weight = torch.nn.Parameter(moe.shared_gate, requires_grad=False)
    return block


def _divided(own: QuantExperts) -> LinearExperts:
    made = LinearExperts(own.experts, own.hidden, own.intermediate, torch.float32, "meta")
    for i, expert in enumerate(made):
        for name, layer in _layers(own.part(i, i + 1)).items():
            setattr(expert, name, layer)
    return made


def _layers(own: QuantExperts) -> dict[str, QuantizedLinear]:
    """The linear layers of a single expert."""
    codes, scale = own.codes("gate_up")
    halves = zip(codes.chunk(2), scale.chunk(2), strict=True)
    return dict(zip(PROJECTIONS, (_layer(own, *pair) for pair in (*halves, own.codes("down"))), strict=True))


def _layer(own: QuantExperts, codes: torch.Tensor, scale: torch.Tensor) -> QuantizedLinear:
    if own.bits == 8:
        return QuantLinear.from_codes(codes.contiguous(), scale[:, 0].contiguous())
    size = own.group_size or codes.shape[1]
    return WeightQuantLinear.from_quantized(QuantizedWeight.from_codes(codes, scale, group_size=size))


def routers(model: torch.nn.Module) -> list[str]:
    """The names of the modules that choose experts."""
    experts = [
        name for name, module in model.named_modules() if isinstance(module, LinearExperts) or is_experts(module)
    ]
    blocks = [name.removesuffix("experts") for name in experts]
    return [block + own for block in blocks for own in ("gate", "router") if has(model, block + own)]


def count_experts(module: torch.nn.Module) -> int:
    """How many experts a module of a transformers model, or one that was split, holds."""
    return len(module) if isinstance(module, LinearExperts) else sizes_of_experts(module)[0]


def stack_float_experts(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces float tensors of experts by the 3-D parameters that the model has."""
    for name, module in model.named_modules():
        first = f"{name}.0.gate_proj.weight"
        if not is_experts(module) or first not in tensors:
            continue
        experts, hidden, intermediate = sizes_of_experts(module)
        shapes = {
            "gate_proj": (intermediate, hidden),
            "up_proj": (intermediate, hidden),
            "down_proj": (hidden, intermediate),
        }
        gate, up, down = (
            torch.stack([_taken(tensors, f"{name}.{i}.{own}.weight", shapes[own]) for i in range(experts)])
            for own in PROJECTIONS
        )
        tensors |= {f"{name}.gate_up_proj": torch.cat([gate, up], dim=1), f"{name}.down_proj": down}


def _taken(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, int]) -> torch.Tensor:
    require(OP, name in tensors, f"the files lack {name}, an expert of the model")
    tensor = tensors.pop(name)
    require(OP, tuple(tensor.shape) == shape, f"{name} must have shape {shape} by {CONFIG}, got {tuple(tensor.shape)}")
    return tensor


def float_experts(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor of the model by its name in files: 3-D parameters of experts become a tensor for each matrix."""
    experts, _, own = name.rpartition(".")
    if not is_experts(model.get_submodule(experts)):
        return {name: tensor}
    if own == "down_proj":
        return {f"{experts}.{i}.down_proj.weight": each for i, each in enumerate(tensor)}
    halves = zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1), strict=True)
    return {f"{experts}.{i}.{half}.weight": each for half, part in halves for i, each in enumerate(part)}
