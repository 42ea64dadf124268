# SPDX-License-Identifier: Apache-2.0
"""grouped_matmul out of the products of single groups, or of what does all at once: grouped_matmul_combine's kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from anynpu._arguments import takes
from anynpu.ops.grouped_matmul.spec import COUNTS, Arguments, Group, Mode, group_sizes, results
from anynpu.ops.grouped_matmul_combine import grouped_matmul_combine
from anynpu.ops.grouped_matmul_combine.cpu import grouped_sums
from anynpu.ops.quant_matmul import quant_matmul
from anynpu.ops.weight_quant_matmul import weight_quant_matmul


@takes(Arguments)
def grouped_matmul(a: Arguments) -> list[torch.Tensor]:
    """See ``anynpu.grouped_matmul``."""
    shapes, mode = results(a)
    if a.split_item in (0, 1):
        return [_product(group, mode) for group in _pairs(a)]
    sizes = _sizes(a)
    if len(a.x) == 1 and a.weight[0].dim() == 3:
        [all_groups] = _pairs(a)
        if mode.dtype == torch.int32:
            return [_sums(all_groups, sizes)]
        if _is_one_call(all_groups, mode):
            return [_all_at_once(all_groups, sizes).to(mode.dtype)]
    products = [_product(group, mode) for group in _groups(a, sizes) if len(group.x) > 0]
    rest = torch.zeros(shapes[0][0] - sum(sizes), shapes[0][1], dtype=mode.dtype)
    return [torch.cat([*products, rest])]


def _sizes(a: Arguments) -> list[int]:
    """Rows of each group. Many x say it themselves, whatever group_list says must agree."""
    own = [rows.shape[0] for rows in a.x]
    sizes = own if a.group_list is None else group_sizes(a)
    if len(a.x) > 1 and sizes != own:
        raise ValueError(f"grouped_matmul: group_list must give the rows of each x, {own}, got {sizes}")
    return sizes


def _pairs(a: Arguments) -> Iterator[Group]:
    for index, (rows, matrix) in enumerate(zip(a.x, a.weight, strict=True)):
        yield Group(rows, matrix, **{name: tensors[index] for name, tensors in a.lists.items()})


def _groups(a: Arguments, sizes: list[int]) -> Iterator[Group]:
    if len(a.x) > 1:
        yield from _pairs(a)
        return
    stacked, lists = a.weight[0].dim() == 3, {"weight": a.weight, **a.lists}
    tokens = lists.pop("per_token_scale", None)
    own = {name: _parameters(tensors, len(sizes), stacked) for name, tensors in lists.items()}
    own["x"] = _rows(a.x[0], sizes)
    if tokens:
        own["per_token_scale"] = _rows(tokens[0], sizes)
    for group in range(len(sizes)):
        yield Group(**{name: tensors[group] for name, tensors in own.items()})


def _rows(tensor: torch.Tensor, sizes: list[int]) -> Sequence[torch.Tensor]:
    return tensor[: sum(sizes)].split(sizes)


def _parameters(tensors: Sequence[torch.Tensor], groups: int, stacked: bool) -> Sequence[torch.Tensor]:
    if not stacked:
        return tensors
    return [tensors[0]] * groups if tensors[0].dim() == 1 else tensors[0].unbind()  # (1,): one for all


def _sums(all_groups: Group, sizes: list[int]) -> torch.Tensor:
    counts = torch.tensor(sizes, dtype=torch.int64)
    y = grouped_sums(all_groups.x, all_groups.weight, counts)
    if all_groups.bias is not None:
        y[: sum(sizes)] += all_groups.bias.repeat_interleave(counts, dim=0)
    return y


def _is_one_call(all_groups: Group, mode: Mode) -> bool:
    if mode.name == "int4":
        return True
    no_bias = all_groups.bias is None
    return mode.name == "int8" and mode.dtype.is_floating_point and no_bias and all_groups.scale.dim() == 2


def _all_at_once(all_groups: Group, sizes: list[int]) -> torch.Tensor:
    """Of rows of x and weights [E, K, N]."""
    x, weight, bias, scale = all_groups.x, all_groups.weight, all_groups.bias, all_groups.scale
    if weight.dtype == torch.int8:
        scale = scale.expand(weight.shape[0], weight.shape[2])
    tokens = all_groups.per_token_scale
    return grouped_matmul_combine(
        x,
        weight,
        scale.contiguous(),
        torch.tensor(sizes, dtype=torch.int64),
        torch.arange(x.shape[0]),
        None if bias is None else bias.contiguous(),
        pertoken_scale=None if tokens is None else tokens.reshape(-1).contiguous(),
        group_list_type=COUNTS,
    )


def _product(group: Group, mode: Mode) -> torch.Tensor:
    if mode.name == "float":
        return _float_product(group)
    if mode.name == "antiquant":
        return _antiquant_product(group)
    rows = group.x.reshape(-1, group.x.shape[-1])
    y = (_int4_product if mode.name == "int4" else _int8_product)(rows, group, mode)
    return y.reshape(*group.x.shape[:-1], y.shape[-1])


def _float_product(group: Group) -> torch.Tensor:
    y = group.x.float() @ group.weight.float()
    return (y if group.bias is None else y + group.bias.float()).to(group.x.dtype)


def _antiquant_product(group: Group) -> torch.Tensor:
    scale, k = group.antiquant_scale, group.x.shape[-1]
    groups = scale.shape[0] if scale.dim() == 2 else 1
    return weight_quant_matmul(
        group.x,
        group.weight,
        scale,
        group.antiquant_offset,
        group.bias,
        group_size=0 if groups == 1 else k // groups,
    )


def _int8_product(rows: torch.Tensor, group: Group, mode: Mode) -> torch.Tensor:
    scale = torch.ones(1) if group.scale is None else group.scale.reshape(-1)
    if scale.dtype == torch.bfloat16:
        scale = scale.float()
    per_token = None if group.per_token_scale is None else group.per_token_scale.reshape(-1)
    return quant_matmul(rows, group.weight, scale, pertoken_scale=per_token, bias=group.bias, output_dtype=mode.dtype)


def _int4_product(rows: torch.Tensor, group: Group, mode: Mode) -> torch.Tensor:
    bias = None if group.bias is None else group.bias.unsqueeze(0)
    whole = group._replace(x=rows, weight=group.weight.unsqueeze(0), bias=bias, scale=group.scale.unsqueeze(0))
    return _all_at_once(whole, [rows.shape[0]]).to(mode.dtype)
