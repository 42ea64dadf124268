# SPDX-License-Identifier: Apache-2.0
"""grouped_matmul out of the products of single groups, or of what does all at once: grouped_matmul_combine's kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from anynpu.ops.grouped_matmul.spec import COUNTS, CUMULATIVE, Mode, group_count, group_sizes, results
from anynpu.ops.grouped_matmul_combine import grouped_matmul_combine
from anynpu.ops.grouped_matmul_combine.cpu import grouped_sums
from anynpu.ops.quant_matmul import quant_matmul
from anynpu.ops.weight_quant_matmul import weight_quant_matmul


@dataclass(frozen=True)
class Group:
    """Rows of x and the parameters of the weight that multiplies them; what is absent is None."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: torch.Tensor | None
    antiquant_scale: torch.Tensor | None
    antiquant_offset: torch.Tensor | None
    per_token_scale: torch.Tensor | None


def grouped_matmul(
    x: Sequence[torch.Tensor],
    weight: Sequence[torch.Tensor],
    group_list: torch.Tensor | None = None,
    bias: Sequence[torch.Tensor] | None = None,
    scale: Sequence[torch.Tensor] | None = None,
    antiquant_scale: Sequence[torch.Tensor] | None = None,
    antiquant_offset: Sequence[torch.Tensor] | None = None,
    per_token_scale: Sequence[torch.Tensor] | None = None,
    split_item: int = 0,
    group_type: int = -1,
    group_list_type: int = CUMULATIVE,
    output_dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """See ``anynpu.grouped_matmul``."""
    lists = (bias, scale, antiquant_scale, antiquant_offset, per_token_scale)
    shapes, mode = results(x, weight, group_list, *lists, split_item, group_type, group_list_type, output_dtype)
    if split_item in (0, 1):
        return [_product(group, mode) for group in _pairs(x, weight, lists)]
    sizes = _sizes(x, group_list, group_list_type, group_count(weight))
    if len(x) == 1 and weight[0].dim() == 3:
        if mode.dtype == torch.int32:
            return [_sums(x[0], weight[0], sizes, bias)]
        if _is_one_call(mode, scale, bias):
            return [_all_at_once(x[0], weight[0], sizes, bias, scale, per_token_scale).to(mode.dtype)]
    products = [_product(group, mode) for group in _groups(x, weight, lists, sizes) if len(group.x) > 0]
    rest = torch.zeros(shapes[0][0] - sum(sizes), shapes[0][1], dtype=mode.dtype)
    return [torch.cat([*products, rest])]


def _sizes(x, group_list, group_list_type, groups) -> list[int]:
    """Rows of each group. Many x say it themselves, whatever group_list says must agree."""
    if group_list is None:
        return [rows.shape[0] for rows in x]
    sizes = group_sizes(group_list, sum(rows.shape[0] for rows in x), group_list_type, groups)
    if len(x) > 1 and sizes != [rows.shape[0] for rows in x]:
        raise ValueError(
            f"grouped_matmul: group_list must give the rows of each x, {[rows.shape[0] for rows in x]}, got {sizes}"
        )
    return sizes


def _pairs(x, weight, lists) -> Iterator[Group]:
    for index, (rows, matrix) in enumerate(zip(x, weight, strict=True)):
        yield Group(rows, matrix, *(None if not tensors else tensors[index] for tensors in lists))


def _groups(x, weight, lists, sizes: list[int]) -> Iterator[Group]:
    if len(x) > 1:
        yield from _pairs(x, weight, lists)
        return
    *parameters, per_token = lists
    stacked = weight[0].dim() == 3
    own = [_parameters(tensors, len(sizes), stacked) for tensors in parameters]
    tokens = _rows(per_token[0], sizes) if per_token else [None] * len(sizes)
    yield from map(Group, _rows(x[0], sizes), weight[0].unbind() if stacked else weight, *own, tokens)


def _rows(tensor: torch.Tensor, sizes: list[int]) -> Sequence[torch.Tensor]:
    return tensor[: sum(sizes)].split(sizes)


def _parameters(tensors, groups: int, stacked: bool) -> Sequence[torch.Tensor | None]:
    if not tensors:
        return [None] * groups
    if not stacked:
        return tensors
    return [tensors[0]] * groups if tensors[0].dim() == 1 else tensors[0].unbind()  # (1,): one for all


def _sums(x, weight, sizes, bias) -> torch.Tensor:
    counts = torch.tensor(sizes, dtype=torch.int64)
    y = grouped_sums(x, weight, counts)
    if bias:
        y[: sum(sizes)] += bias[0].repeat_interleave(counts, dim=0)
    return y


def _is_one_call(mode: Mode, scale, bias) -> bool:
    if mode.name == "int4":
        return True
    return mode.name == "int8" and mode.dtype.is_floating_point and not bias and scale[0].dim() == 2


def _all_at_once(x, weight, sizes, bias, scale, per_token_scale) -> torch.Tensor:
    experts, n = weight.shape[0], scale[0].shape[-1]
    if weight.dtype == torch.int8:
        n = weight.shape[-1]
        scale = [scale[0].expand(experts, n)]
    return grouped_matmul_combine(
        x,
        weight,
        scale[0].contiguous(),
        torch.tensor(sizes, dtype=torch.int64),
        torch.arange(x.shape[0]),
        bias[0].contiguous() if bias else None,
        pertoken_scale=per_token_scale[0].reshape(-1).contiguous() if per_token_scale else None,
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
    one = [None if tensor is None else [tensor.unsqueeze(0)] for tensor in (group.bias, group.scale)]
    per_token = None if group.per_token_scale is None else [group.per_token_scale]
    return _all_at_once(rows, group.weight.unsqueeze(0), [rows.shape[0]], *one, per_token).to(mode.dtype)
