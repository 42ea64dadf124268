# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of grouped_matmul."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import dtype_name, require, require_allowed, require_dtype, require_tensor
from anynpu._register import Sample
from anynpu.ops.grouped_matmul_combine.spec import MOST_K
from anynpu.ops.grouped_matmul_combine.weights import pack_scale
from anynpu.ops.int4_pack import int4_pack
from anynpu.ops.weight_quant_matmul.spec import matrix_shape

OP = "grouped_matmul"
SCHEMA = (
    "(Tensor[] x, Tensor[] weight, Tensor? group_list=None, Tensor[]? bias=None, Tensor[]? scale=None, "
    "Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, Tensor[]? per_token_scale=None, "
    "int split_item=0, int group_type=-1, int group_list_type=0, ScalarType? output_dtype=None) -> Tensor[]"
)
CUMULATIVE, COUNTS, PAIRS = 0, 1, 2
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
HALVES = (torch.float16, torch.bfloat16)


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: Sequence[torch.Tensor]
    weight: Sequence[torch.Tensor]
    group_list: torch.Tensor | None = None
    bias: Sequence[torch.Tensor] | None = None
    scale: Sequence[torch.Tensor] | None = None
    antiquant_scale: Sequence[torch.Tensor] | None = None
    antiquant_offset: Sequence[torch.Tensor] | None = None
    per_token_scale: Sequence[torch.Tensor] | None = None
    split_item: int = 0
    group_type: int = -1
    group_list_type: int = CUMULATIVE
    output_dtype: torch.dtype | None = None

    @property
    def lists(self) -> dict[str, Sequence[torch.Tensor]]:
        """The lists beside x and weight that are not empty."""
        names = ("bias", "scale", "antiquant_scale", "antiquant_offset", "per_token_scale")
        return {name: tensors for name in names if (tensors := getattr(self, name))}

    @property
    def groups(self) -> int:
        """Groups of rows: a list of matrices, or the leading axis of one 3-D weight."""
        return self.weight[0].shape[0] if len(self.weight) == 1 and self.weight[0].dim() == 3 else len(self.weight)


class Group(NamedTuple):
    """Rows of x and what belongs to the weight that multiplies them; what is absent is None."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    antiquant_scale: torch.Tensor | None = None
    antiquant_offset: torch.Tensor | None = None
    per_token_scale: torch.Tensor | None = None


@dataclass(frozen=True)
class Mode:
    """What the dtypes of a call ask for."""

    name: str  # "float", "antiquant", "int8" (W8A8) or "int4" (W4A8)
    dtype: torch.dtype  # of the results


def _float_mode(a: Arguments) -> Mode:
    dtype = a.x[0].dtype
    allowed = (torch.int8, torch.int32) if a.antiquant_scale else (dtype,)
    require_allowed(OP, "weight", a.weight[0].dtype, allowed, f"with {dtype_name(dtype)} x")
    for name in ("scale", "per_token_scale"):
        require(OP, name not in a.lists, f"{name} must be absent with {dtype_name(dtype)} x")
    require_allowed(OP, "output_dtype", a.output_dtype or dtype, (dtype,), "as x is")
    if not a.antiquant_scale:
        return Mode("float", dtype)
    require_allowed(OP, "x", dtype, HALVES, "with antiquant_scale")
    return Mode("antiquant", dtype)


def _int8_mode(a: Arguments) -> Mode:
    for name in ("antiquant_scale", "antiquant_offset"):
        require(OP, name not in a.lists, f"{name} must be absent with int8 x")
    weight, dtype = a.weight[0].dtype, a.output_dtype
    if weight == torch.int32:
        require(OP, a.scale, "scale is required with int4 weights")
        require_allowed(OP, "scale", a.scale[0].dtype, (torch.int64,), "with int4 weights")
        require_allowed(OP, "output_dtype", dtype or torch.int8, HALVES, "with int4 weights")
        return Mode("int4", dtype)
    require_allowed(OP, "weight", weight, (torch.int8, torch.int32), "with int8 x")
    if not a.scale:
        require_allowed(OP, "output_dtype", dtype or torch.int32, (torch.int32,), "without scale")
        require(OP, not a.per_token_scale, "per_token_scale needs scale")
        return Mode("int8", torch.int32)
    scale = a.scale[0].dtype
    if scale == torch.int64:
        require_allowed(OP, "output_dtype", dtype or torch.int8, (torch.int8,), "with int64 scale")
        require(OP, not a.per_token_scale, "per_token_scale must be absent with int64 scale")
        return Mode("int8", torch.int8)
    require_allowed(OP, "scale", scale, (torch.int64, torch.float32, torch.bfloat16), "with int8 weights")
    require_allowed(OP, "output_dtype", dtype or torch.int8, HALVES, f"with {dtype_name(scale)} scale")
    return Mode("int8", dtype)


def _mode_of(a: Arguments) -> Mode:
    """The mode of a call, after checking its dtypes."""
    dtype = a.x[0].dtype
    if dtype == torch.int32:
        raise NotImplementedError(f"{OP}: int4 x (packed in int32) is not implemented")
    require_allowed(OP, "x", dtype, (torch.int8, *FLOATS))
    return _int8_mode(a) if dtype == torch.int8 else _float_mode(a)


def _require_lists(a: Arguments) -> None:
    require(OP, len(a.x) > 0 and len(a.weight) > 0, "Invalid inputs: neither x nor weight could be empty.")
    for name, tensors in {"x": a.x, "weight": a.weight, **a.lists}.items():
        for tensor in tensors:
            require_tensor(OP, name, tensor)
            first = tensors[0].dtype
            if tensor.dtype != first:
                raise TypeError(
                    f"{OP}: all tensors of {name} must have one dtype, got {dtype_name(first)} and "
                    f"{dtype_name(tensor.dtype)}"
                )
    for name, tensors in a.lists.items():
        like, expected = ("x", len(a.x)) if name == "per_token_scale" else ("weight", len(a.weight))
        got = len(tensors)
        require(OP, got == expected, f"{name} must have one tensor for each of {like}, {expected}, got {got}")
    require(OP, not a.antiquant_offset or bool(a.antiquant_scale), "antiquant_offset needs antiquant_scale")


def _require_grouping(a: Arguments) -> None:
    require(
        OP,
        a.split_item in (0, 1, 2, 3),
        f"Invalid value of split_item [{a.split_item}], which should only be one of 0/1/2/3.",
    )
    require(OP, a.group_type in (-1, 0, 2), f"group_type only supports -1, 0 and 2, but got {a.group_type}")
    require(OP, a.group_list_type in (0, 1, 2), f"group_list_type must be 0, 1 or 2, got {a.group_list_type}")
    if a.group_type == 2:
        raise NotImplementedError(f"{OP}: group_type 2 (groups along K) is not implemented")
    xs, weights = len(a.x), len(a.weight)
    if a.split_item in (0, 1):
        if a.group_list is not None or a.group_type != -1:
            raise NotImplementedError(
                f"{OP}: split_item 0 and 1 with a group_list (one x, many results) are not implemented; split_item 2 "
                "or 3 gives one result"
            )
        require(
            OP,
            xs == weights,
            "When split_item = 0 or 1 and input group_list is None, the num of x tensors must equal the num of weight "
            f"tensors.Actual lengths: x [{xs}], weight [{weights}].",
        )
        return
    require(OP, a.group_type == 0, f"group_type must be 0 with split_item {a.split_item}, got {a.group_type}")
    if xs > 1:
        require(OP, xs == weights, f"x and weight must have equally many tensors, or x one, got {xs} and {weights}")
    else:
        require(OP, a.group_list is not None, "group_list is required with one x")


def _require_group_list(a: Arguments) -> None:
    if a.group_list is None:
        return
    require_dtype(OP, "group_list", a.group_list, (torch.int64,))
    shape = tuple(a.group_list.shape)
    if a.group_list_type == PAIRS:
        require(
            OP, len(shape) == 2 and shape[1] == 2, f"group_list must have shape (E, 2) of (group, size), got {shape}"
        )
        return
    fits = len(shape) == 1 and shape[0] == a.groups
    require(OP, fits, f"group_list must have shape (E,) = ({a.groups},), one entry a group, got {shape}")


def _weight_n(weight: torch.Tensor, k: int) -> int:
    if weight.dtype not in (torch.int8, torch.int32):
        weight_k, n = weight.shape[-2:]
    else:
        weight_k, n = matrix_shape(OP, weight, k)
    require(OP, weight_k == k, f"K of x and weight must be equal, got {k} and {weight_k}")
    return n


def _columns(a: Arguments) -> list[int]:
    """N of each weight, after checking ranks and K."""
    together = a.split_item in (2, 3)
    single = len(a.weight) == 1 and together and len(a.x) == 1
    columns = []
    for index, w in enumerate(a.weight):
        axes = (2, 3) if single else (2,)
        require(
            OP,
            w.dim() in axes,
            f"weight must have {'three axes (E, K, N), or a list two each' if single else 'two axes (K, N)'}, "
            f"got {tuple(w.shape)}",
        )
        own = a.x[index if len(a.x) > 1 else 0]
        fits = own.dim() == 2 if together else 2 <= own.dim() <= 6
        require(OP, fits, f"x must have {'2' if together else '2 to 6'} axes, got {tuple(own.shape)}")
        columns.append(_weight_n(w, own.shape[-1]))
    if together:
        same = all(n == columns[0] for n in columns)
        require(OP, same, f"all weights must have the same N with split_item {a.split_item}, got {columns}")
    return columns


def _require_parameters(a: Arguments, columns: list[int], mode: Mode) -> None:
    for index, n in enumerate(columns):
        lead = tuple(a.weight[index].shape[:-2])
        k = a.x[index if len(a.x) > 1 else 0].shape[-1]
        if mode.name in ("int8", "int4"):
            require(OP, 1 <= k <= MOST_K, f"K must be in [1, {MOST_K}] so that int32 sums are exact, got {k}")
        if a.bias:
            _require_columns("bias", a.bias[index], (*lead, n), mode)
        if a.scale and mode.name == "int4":
            _require_groups("scale", a.scale[index], lead, k, n)
        elif a.scale:
            shape = tuple(a.scale[index].shape)
            fits = shape in ((*lead, n), (*lead, 1), (1,))
            require(OP, fits, f"scale must have shape {(*lead, n)}, or 1 in place of N, got {shape}")
        for name in ("antiquant_scale", "antiquant_offset"):
            if name in a.lists:
                _require_antiquant(name, a.lists[name][index], a.x[0], a.weight[index], k, n)
    for rows, tensor in zip(a.x, a.per_token_scale or (), strict=False):
        require_allowed(OP, "per_token_scale", tensor.dtype, (torch.float32,))
        m = rows.shape[0]
        fits = rows.dim() == 2 and tuple(tensor.shape) in ((m,), (m, 1))
        require(OP, fits, f"per_token_scale must have shape (M,) or (M, 1) with M = {m}, got {tuple(tensor.shape)}")


def _require_columns(name: str, tensor: torch.Tensor, shape: tuple, mode: Mode) -> None:
    allowed = {
        "float": (torch.float16, torch.float32) if mode.dtype == torch.float16 else (torch.float32,),
        "antiquant": (torch.float16, torch.float32) if mode.dtype == torch.float16 else (torch.float32,),
        "int8": (torch.int32, torch.float32) if mode.dtype in HALVES else (torch.int32,),
        "int4": (torch.float32,),
    }[mode.name]
    require_allowed(OP, name, tensor.dtype, allowed, f"for {dtype_name(mode.dtype)} results")
    require(OP, tuple(tensor.shape) == shape, f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _require_groups(name: str, tensor: torch.Tensor, lead: tuple, k: int, n: int) -> None:
    shape = tuple(tensor.shape)
    fits = (
        len(shape) == len(lead) + 2 and shape[:-2] == lead and shape[-1] == n and shape[-2] >= 1 and k % shape[-2] == 0
    )
    require(OP, fits, f"{name} must have shape {(*lead, 'G', n)} with G a divisor of K = {k}, got {shape}")


def _require_antiquant(name: str, tensor: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, k: int, n: int) -> None:
    lead = tuple(weight.shape[:-2])
    require_allowed(OP, name, tensor.dtype, (x.dtype,), "as x is")
    if tuple(tensor.shape) == (*lead, n):
        return
    require(OP, weight.dtype == torch.int32, f"{name} must have shape {(*lead, n)}, got {tuple(tensor.shape)}")
    _require_groups(name, tensor, lead, k, n)
    size = k // tensor.shape[-2]
    require(
        OP, size == k or size % 32 == 0, f"groups of {name} must be a multiple of 32 k, got {k} / {tensor.shape[-2]}"
    )


def results(a: Arguments) -> tuple[list[list[int]], Mode]:
    """Checks everything that does not need data; returns the shapes of the results and the mode."""
    _require_lists(a)
    _require_grouping(a)
    mode = _mode_of(a)
    columns = _columns(a)
    _require_group_list(a)
    _require_parameters(a, columns, mode)
    if a.split_item in (0, 1):
        return [[*rows.shape[:-1], n] for rows, n in zip(a.x, columns, strict=True)], mode
    return [[sum(rows.shape[0] for rows in a.x), columns[0]]], mode


@takes(Arguments)
def fake(a: Arguments) -> list[torch.Tensor]:
    """Fake kernel."""
    shapes, mode = results(a)
    return [a.x[0].new_empty(shape, dtype=mode.dtype) for shape in shapes]


def group_sizes(a: Arguments) -> list[int]:
    """Rows of each group; a list that does not fit M is refused."""
    entries, m, counts = a.group_list.tolist(), sum(rows.shape[0] for rows in a.x), a.group_list_type == COUNTS
    if a.group_list_type == PAIRS:
        return _sizes_of_pairs(entries, m, a.groups)
    sizes, end = [], 0
    for index, entry in enumerate(entries):
        size = entry if counts else entry - end
        if not 0 <= size <= m - end:
            limits, kind = (f"[0, {m - end}]", "counts") if counts else (f"[{end}, {m}]", "running sums")
            rule = f"group_list[{index}] must be in {limits} ({kind}, x has {m} rows)"
            raise ValueError(f"{OP}: {rule}, got {entry}")
        sizes.append(size)
        end += size
    return sizes


def _sizes_of_pairs(pairs: list[list[int]], m: int, groups: int) -> list[int]:
    sizes, least, left = [0] * groups, 0, m
    for index, (group, size) in enumerate(pairs):
        if size == 0:
            continue
        if not least <= group < groups:
            raise ValueError(f"{OP}: group_list[{index}] must name a group in [{least}, {groups}), got {group}")
        if not 0 <= size <= left:
            raise ValueError(f"{OP}: group_list[{index}] must have a size in [0, {left}] (x has {m} rows), got {size}")
        sizes[group], least, left = size, group + 1, left - size
    return sizes


def _int8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def _int4(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return int4_pack(torch.randint(-8, 8, shape, dtype=torch.int32, generator=generator))


def _reals(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def samples() -> Iterator[Sample]:
    """Valid calls."""
    counts, int8 = torch.tensor([3, 0, 5]), ([_int8(9, 40)], [_int8(3, 40, 33, seed=1)])
    rows = {"split_item": 2, "group_type": 0}
    sums = Arguments(*int8, counts, **rows, group_list_type=COUNTS, output_dtype=torch.int32)
    yield Sample("sums", sums)
    scales = {"scale": [_reals(3, 33)], "per_token_scale": [_reals(9)]}
    yield Sample("W8A8", sums._replace(**scales, split_item=3, output_dtype=torch.bfloat16))
    scales = {"bias": [_reals(3, 72)], "scale": [pack_scale(_reals(3, 3, 72))], "per_token_scale": [_reals(9)]}
    int4 = [_int8(9, 96)], [_int4(3, 96, 72)], torch.tensor([3, 3, 8])
    yield Sample("W4A8", Arguments(*int4, **scales, **rows, output_dtype=torch.float16))
    lists = [_reals(2, 64).half(), _reals(3, 128).half()], [_int4(64, 72), _int4(128, 72)]
    scales = [_reals(72).half(), _reals(2, 72).half()]
    yield Sample("W4A16 lists", Arguments(*lists, antiquant_scale=scales, antiquant_offset=scales))
