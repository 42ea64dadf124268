# SPDX-License-Identifier: Apache-2.0
"""The weights of a mixture's experts in the operands of grouped_matmul_combine and grouped_matmul."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from anynpu._check import dtype_name, path_of, require, require_dtype, require_tensor, require_type
from anynpu._read import open_tensors, read_tensor, shard_names
from anynpu.formats.quantized_weight import QuantizedWeight
from anynpu.ops.grouped_matmul_combine import make_w4a8_bias, pack_scale
from anynpu.ops.int4_pack import int4_pack, int4_unpack
from anynpu.ops.weight_quant_matmul.spec import is_transposed

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class ExpertWeights:
    """Arguments of anynpu.grouped_matmul_combine, by their names there.

    Attributes:
        weight: int8 ``[E, K, N]``, or int4 as int32 ``[E, K, N / 8]``.
        scale: float32 ``[E, N]``, or for int4 int64 ``[E, G, N]``.
        bias: None, or for int4 the float32 ``[E, N]`` that makes up for the split of x.
        offset: None, or for asymmetric int4 float32 ``[E, 1, N]``.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None = None
    offset: torch.Tensor | None = None


def stack_experts(experts: Sequence[QuantizedWeight]) -> ExpertWeights:
    """Puts the matrices of all experts, all of one shape and kind, into one operand.

    Raises:
        ValueError: no experts, matrices that differ in kind or shape, N no multiple of 8 for int4, a permuted input
            (activation ordering), or offsets other than those of int4 with a scale for each column.
    """
    op = "stack_experts"
    require_type(op, "experts", experts, Sequence, "a sequence of QuantizedWeight")
    for each in experts:
        require_type(op, "each of experts", each, QuantizedWeight, "a QuantizedWeight")
    require(op, len(experts) > 0, "experts must not be empty")
    kinds = {(each.weight.dtype, each.shape, each.scale.shape, each.offset is None) for each in experts}
    require(op, len(kinds) == 1, f"experts must agree in dtype, shape, groups and offset, got {len(kinds)} kinds")
    first = experts[0]
    ordered = all(each.input_order is None for each in experts)
    require(op, ordered, "experts must have no input_order (activation ordering)")
    if first.weight.dtype == torch.int8:
        require(
            op, first.offset is None and first.scale.dim() == 1, "int8 experts must have one scale a column, no offset"
        )
        return ExpertWeights(
            torch.stack([each.weight.contiguous() for each in experts]), torch.stack([each.scale for each in experts])
        )
    k, n = first.shape
    require(op, n % 8 == 0, f"N of int4 experts must be a multiple of 8, got {n}")
    grouped = first.group_size not in (0, k)
    require(op, first.offset is None or not grouped, "int4 experts with groups must have no offset")
    require(op, not grouped or k % first.group_size == 0, f"group_size must divide K, got {first.group_size} and {k}")
    weight = int4_pack(torch.stack([_codes(each) for each in experts]))
    scale = torch.stack([each.scale.reshape(-1, n) for each in experts])
    offset = None
    if first.offset is not None:
        offset = torch.stack([(each.offset.double() * each.scale.double()).float().reshape(1, n) for each in experts])
    return ExpertWeights(weight, pack_scale(scale), make_w4a8_bias(weight, scale), offset)


def _codes(expert: QuantizedWeight) -> torch.Tensor:
    """int32 [K, N] in [-8, 7]."""
    if is_transposed(expert.weight):
        return int4_unpack(expert.weight.t().contiguous()).t().contiguous()
    return int4_unpack(expert.weight.contiguous())


def from_int8(weight: torch.Tensor, weight_scale: torch.Tensor) -> QuantizedWeight:
    """Converts one int8 linear layer: weight ``[N, K]``, weight_scale float ``[N]`` or ``[N, 1]``.

    Raises:
        TypeError, ValueError: a dtype or shape other than these.
    """
    op = "from_int8"
    require_dtype(op, "weight", weight, (torch.int8,))
    require_tensor(op, "weight_scale", weight_scale)
    if not weight_scale.is_floating_point():
        raise TypeError(f"{op}: weight_scale must be float, got {dtype_name(weight_scale.dtype)}")
    n = weight.shape[0] if weight.dim() == 2 else -1
    fits = tuple(weight_scale.shape) in ((n,), (n, 1))
    shapes = f"{tuple(weight.shape)} and {tuple(weight_scale.shape)}"
    require(op, fits, f"weight must be (N, K) and weight_scale (N,) or (N, 1), got {shapes}")
    require(op, bool(weight_scale.isfinite().all()), "weight_scale must be finite")
    return QuantizedWeight(weight.contiguous().t(), weight_scale.reshape(n).float())


def load_experts(
    path: str | os.PathLike,
    name: str,
    convert: Callable[..., QuantizedWeight],
    experts: Sequence[int] | None = None,
) -> ExpertWeights:
    """Reads the same layer of many experts from a safetensors checkpoint.

    Args:
        path: a ``.safetensors`` file, or a folder with one or with ``model.safetensors.index.json``.
        name: of the layer, with ``{}`` where the number of the expert stands, e.g.
            ``model.layers.0.mlp.experts.{}.down_proj``.
        convert: makes a :class:`QuantizedWeight` of the tensors ``<name>.<argument>`` of the file, by name:
            :func:`from_int8`, :func:`from_compressed_tensors`, :func:`from_msmodelslim_w4a8`, ...
        experts: the numbers of the experts, in order; None: all from 0 on. An expert-parallel rank names its own.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: a damaged file, an index that names files outside its folder, a missing expert, or whatever
            ``convert`` and :func:`stack_experts` refuse.
    """
    op = "load_experts"
    path = path_of(op, "path", path)
    require_type(op, "name", name, str, "a string")
    require_type(op, "convert", convert, Callable, "a function")
    require(op, name.count("{}") == 1, f"name must have one {{}} for the number of the expert, got {name!r}")
    with ExitStack() as stack:
        tensors = {}
        for file in _files(path):
            opened = stack.enter_context(open_tensors(op, file))
            tensors.update(dict.fromkeys(opened.keys(), opened))
        numbers = list(_numbers(tensors, name)) if experts is None else list(experts)
        require(op, len(numbers) > 0, f"no tensor is named {name.format(0)}.*")
        return stack_experts([_expert(op, tensors, f"{name.format(number)}.", convert) for number in numbers])


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / INDEX
    if index.exists():
        return [path / file for file in sorted(shard_names("load_experts", index))]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"load_experts: {path} holds no safetensors file")
    return files


def _numbers(tensors: dict, name: str) -> Iterator[int]:
    prefixes = {key.rpartition(".")[0] for key in tensors}
    number = 0
    while name.format(number) in prefixes:
        yield number
        number += 1


def _expert(op: str, tensors: dict, prefix: str, convert: Callable[..., QuantizedWeight]) -> QuantizedWeight:
    own = {key.removeprefix(prefix): read_tensor(op, tensors[key], key) for key in tensors if key.startswith(prefix)}
    require(op, len(own) > 0, f"no tensor is named {prefix}*")
    try:
        return convert(**own)
    except TypeError as error:
        raise ValueError(f"{op}: {prefix}* holds {sorted(own)}: {error}") from error
