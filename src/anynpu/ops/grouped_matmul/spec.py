# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of grouped_matmul."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

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

Tensors = Sequence[torch.Tensor] | None


@dataclass(frozen=True)
class Mode:
    """What the dtypes of a call ask for."""

    name: str  # "float", "antiquant", "int8" (W8A8) or "int4" (W4A8)
    dtype: torch.dtype  # of the results


def _float_mode(x, weight, options, dtype) -> Mode:
    allowed = (torch.int8, torch.int32) if options["antiquant_scale"] else (x.dtype,)
    require_allowed(OP, "weight", weight.dtype, allowed, f"with {dtype_name(x.dtype)} x")
    for name in ("scale", "per_token_scale"):
        require(OP, not options[name], f"{name} must be absent with {dtype_name(x.dtype)} x")
    require_allowed(OP, "output_dtype", dtype or x.dtype, (x.dtype,), "as x is")
    if not options["antiquant_scale"]:
        return Mode("float", x.dtype)
    require_allowed(OP, "x", x.dtype, HALVES, "with antiquant_scale")
    return Mode("antiquant", x.dtype)


def _int8_mode(weight, options, dtype) -> Mode:
    for name in ("antiquant_scale", "antiquant_offset"):
        require(OP, not options[name], f"{name} must be absent with int8 x")
    if weight.dtype == torch.int32:
        require(OP, options["scale"], "scale is required with int4 weights")
        require_allowed(OP, "scale", options["scale"][0].dtype, (torch.int64,), "with int4 weights")
        require_allowed(OP, "output_dtype", dtype or torch.int8, HALVES, "with int4 weights")
        return Mode("int4", dtype)
    require_allowed(OP, "weight", weight.dtype, (torch.int8, torch.int32), "with int8 x")
    if not options["scale"]:
        require_allowed(OP, "output_dtype", dtype or torch.int32, (torch.int32,), "without scale")
        require(OP, not options["per_token_scale"], "per_token_scale needs scale")
        return Mode("int8", torch.int32)
    scale = options["scale"][0].dtype
    if scale == torch.int64:
        require_allowed(OP, "output_dtype", dtype or torch.int8, (torch.int8,), "with int64 scale")
        require(OP, not options["per_token_scale"], "per_token_scale must be absent with int64 scale")
        return Mode("int8", torch.int8)
    require_allowed(OP, "scale", scale, (torch.int64, torch.float32, torch.bfloat16), "with int8 weights")
    require_allowed(OP, "output_dtype", dtype or torch.int8, HALVES, f"with {dtype_name(scale)} scale")
    return Mode("int8", dtype)


def mode_of(x: Sequence[torch.Tensor], weight: Sequence[torch.Tensor], options: dict, dtype) -> Mode:
    """The mode of a call, after checking its dtypes; ``options``: the other lists by name."""
    if x[0].dtype == torch.int32:
        raise NotImplementedError(f"{OP}: int4 x (packed in int32) is not implemented")
    require_allowed(OP, "x", x[0].dtype, (torch.int8, *FLOATS))
    if x[0].dtype == torch.int8:
        return _int8_mode(weight[0], options, dtype)
    return _float_mode(x[0], weight[0], options, dtype)


def _require_lists(x, weight, options) -> None:
    require(OP, len(x) > 0 and len(weight) > 0, "Invalid inputs: neither x nor weight could be empty.")
    for name, tensors in {"x": x, "weight": weight, **options}.items():
        for tensor in tensors or ():
            require_tensor(OP, name, tensor)
            first = tensors[0].dtype
            if tensor.dtype != first:
                raise TypeError(
                    f"{OP}: all tensors of {name} must have one dtype, got {dtype_name(first)} and "
                    f"{dtype_name(tensor.dtype)}"
                )
    for name in ("bias", "scale", "antiquant_scale", "antiquant_offset"):
        count = len(options[name] or ())
        require(
            OP, count in (0, len(weight)), f"{name} must have one tensor for each of weight, {len(weight)}, got {count}"
        )
    count = len(options["per_token_scale"] or ())
    require(OP, count in (0, len(x)), f"per_token_scale must have one tensor for each of x, {len(x)}, got {count}")
    require(
        OP,
        not options["antiquant_offset"] or bool(options["antiquant_scale"]),
        "antiquant_offset needs antiquant_scale",
    )


def _require_grouping(x, weight, group_list, split_item, group_type, group_list_type) -> None:
    require(
        OP,
        split_item in (0, 1, 2, 3),
        f"Invalid value of split_item [{split_item}], which should only be one of 0/1/2/3.",
    )
    require(OP, group_type in (-1, 0, 2), f"group_type only supports -1, 0 and 2, but got {group_type}")
    require(OP, group_list_type in (0, 1, 2), f"group_list_type must be 0, 1 or 2, got {group_list_type}")
    if group_type == 2:
        raise NotImplementedError(f"{OP}: group_type 2 (groups along K) is not implemented")
    if split_item in (0, 1):
        if group_list is not None or group_type != -1:
            raise NotImplementedError(
                f"{OP}: split_item 0 and 1 with a group_list (one x, many results) are not implemented; split_item 2 "
                "or 3 gives one result"
            )
        require(
            OP,
            len(x) == len(weight),
            "When split_item = 0 or 1 and input group_list is None, the num of x tensors must equal the num of weight "
            f"tensors.Actual lengths: x [{len(x)}], weight [{len(weight)}].",
        )
        return
    require(OP, group_type == 0, f"group_type must be 0 with split_item {split_item}, got {group_type}")
    if len(x) > 1:
        require(
            OP,
            len(x) == len(weight),
            f"x and weight must have equally many tensors, or x one, got {len(x)} and {len(weight)}",
        )
    else:
        require(OP, group_list is not None, "group_list is required with one x")


def _require_group_list(group_list, group_list_type, groups: int) -> None:
    if group_list is None:
        return
    require_dtype(OP, "group_list", group_list, (torch.int64,))
    shape = tuple(group_list.shape)
    if group_list_type == PAIRS:
        require(
            OP, len(shape) == 2 and shape[1] == 2, f"group_list must have shape (E, 2) of (group, size), got {shape}"
        )
        return
    fits = len(shape) == 1 and shape[0] == groups
    require(OP, fits, f"group_list must have shape (E,) = ({groups},), one entry a group, got {shape}")


def _weight_n(weight: torch.Tensor, k: int) -> int:
    if weight.dtype not in (torch.int8, torch.int32):
        weight_k, n = weight.shape[-2:]
    else:
        weight_k, n = matrix_shape(OP, weight, k)
    require(OP, weight_k == k, f"K of x and weight must be equal, got {k} and {weight_k}")
    return n


def _columns(x, weight, split_item) -> list[int]:
    """N of each weight, after checking ranks and K."""
    single = len(weight) == 1 and split_item in (2, 3) and len(x) == 1
    columns = []
    for index, w in enumerate(weight):
        axes = (2, 3) if single else (2,)
        require(
            OP,
            w.dim() in axes,
            f"weight must have {'three axes (E, K, N), or a list two each' if single else 'two axes (K, N)'}, "
            f"got {tuple(w.shape)}",
        )
        own = x[index if len(x) > 1 else 0]
        least = 2 if split_item in (2, 3) else 1
        fits = own.dim() == 2 if least == 2 else 2 <= own.dim() <= 6
        require(OP, fits, f"x must have {'2' if least == 2 else '2 to 6'} axes, got {tuple(own.shape)}")
        columns.append(_weight_n(w, own.shape[-1]))
    if split_item in (2, 3):
        same = all(n == columns[0] for n in columns)
        require(OP, same, f"all weights must have the same N with split_item {split_item}, got {columns}")
    return columns


def group_count(weight: Sequence[torch.Tensor]) -> int:
    """Groups of rows: a list of matrices, or the leading axis of one 3-D weight."""
    return weight[0].shape[0] if len(weight) == 1 and weight[0].dim() == 3 else len(weight)


def _require_parameters(x, weight, options, columns, mode) -> None:
    for index, n in enumerate(columns):
        lead = tuple(weight[index].shape[:-2])
        k = x[index if len(x) > 1 else 0].shape[-1]
        if mode.name in ("int8", "int4"):
            require(OP, 1 <= k <= MOST_K, f"K must be in [1, {MOST_K}] so that int32 sums are exact, got {k}")
        if options["bias"]:
            _require_columns("bias", options["bias"][index], (*lead, n), mode)
        if options["scale"] and mode.name == "int4":
            _require_groups("scale", options["scale"][index], lead, k, n)
        elif options["scale"]:
            scale = options["scale"][index]
            fits = tuple(scale.shape) in ((*lead, n), (*lead, 1), (1,))
            require(OP, fits, f"scale must have shape {(*lead, n)}, or 1 in place of N, got {tuple(scale.shape)}")
        for name in ("antiquant_scale", "antiquant_offset"):
            if options[name]:
                _require_antiquant(name, options[name][index], x[0], weight[index], lead, k, n)
    for index, tensor in enumerate(options["per_token_scale"] or ()):
        rows = x[index]
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


def _require_antiquant(name: str, tensor, x, weight, lead, k, n) -> None:
    require_allowed(OP, name, tensor.dtype, (x.dtype,), "as x is")
    if tuple(tensor.shape) == (*lead, n):
        return
    require(OP, weight.dtype == torch.int32, f"{name} must have shape {(*lead, n)}, got {tuple(tensor.shape)}")
    _require_groups(name, tensor, lead, k, n)
    size = k // tensor.shape[-2]
    require(
        OP, size == k or size % 32 == 0, f"groups of {name} must be a multiple of 32 k, got {k} / {tensor.shape[-2]}"
    )


def results(
    x,
    weight,
    group_list=None,
    bias=None,
    scale=None,
    antiquant_scale=None,
    antiquant_offset=None,
    per_token_scale=None,
    split_item=0,
    group_type=-1,
    group_list_type=CUMULATIVE,
    output_dtype=None,
) -> tuple[list[list[int]], Mode]:
    """Checks everything that does not need data; returns the shapes of the results and the mode."""
    options = {
        "bias": bias,
        "scale": scale,
        "antiquant_scale": antiquant_scale,
        "antiquant_offset": antiquant_offset,
        "per_token_scale": per_token_scale,
    }
    _require_lists(x, weight, options)
    _require_grouping(x, weight, group_list, split_item, group_type, group_list_type)
    mode = mode_of(x, weight, options, output_dtype)
    columns = _columns(x, weight, split_item)
    _require_group_list(group_list, group_list_type, group_count(weight))
    _require_parameters(x, weight, options, columns, mode)
    if split_item in (0, 1):
        return [[*rows.shape[:-1], n] for rows, n in zip(x, columns, strict=True)], mode
    return [[sum(rows.shape[0] for rows in x), columns[0]]], mode


def fake(x, *arguments, **options) -> list[torch.Tensor]:
    """Fake kernel."""
    shapes, mode = results(x, *arguments, **options)
    return [x[0].new_empty(shape, dtype=mode.dtype) for shape in shapes]


def group_sizes(group_list: torch.Tensor, m: int, group_list_type: int, groups: int) -> list[int]:
    """Rows of each group; a list that does not fit M is refused."""
    entries = group_list.tolist()
    if group_list_type == PAIRS:
        return _sizes_of_pairs(entries, m, groups)
    sizes, end = [], 0
    for index, entry in enumerate(entries):
        size = entry if group_list_type == COUNTS else entry - end
        if not 0 <= size <= m - end:
            rule = (
                f"group_list[{index}] must be in [0, {m - end}] (counts, x has {m} rows)"
                if group_list_type == COUNTS
                else f"group_list[{index}] must be in [{end}, {m}] (running sums, x has {m} rows)"
            )
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
    counts, none = torch.tensor([3, 0, 5]), (None,) * 3
    yield Sample("sums", ([_int8(9, 40)], [_int8(3, 40, 33, seed=1)], counts, *none, *none[:2], 2, 0, 1, torch.int32))
    yield Sample(
        "W8A8",
        (
            [_int8(9, 40)],
            [_int8(3, 40, 33, seed=1)],
            counts,
            None,
            [_reals(3, 33)],
            None,
            None,
            [_reals(9)],
            3,
            0,
            1,
            torch.bfloat16,
        ),
    )
    yield Sample(
        "W4A8",
        (
            [_int8(9, 96)],
            [_int4(3, 96, 72)],
            torch.tensor([3, 3, 8]),
            [_reals(3, 72)],
            [pack_scale(_reals(3, 3, 72))],
            None,
            None,
            [_reals(9)],
            2,
            0,
            0,
            torch.float16,
        ),
    )
    yield Sample(
        "W4A16 lists",
        (
            [_reals(2, 64).half(), _reals(3, 128).half()],
            [_int4(64, 72), _int4(128, 72)],
            None,
            None,
            None,
            [_reals(72).half(), _reals(2, 72).half()],
            [_reals(72).half(), _reals(2, 72).half()],
        ),
    )
