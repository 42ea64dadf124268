# SPDX-License-Identifier: Apache-2.0
"""What triton-ascend accepts and Triton does not, in Triton's interpreter.

Tensors of any size, mathematical functions of 16-bit floats, arithmetic in bfloat16, and casts that saturate. The
interpreter has bfloat16 as uint16: here each operation computes in float32 and rounds to the nearest, as on the device.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy
import triton.language as tl
from triton.language.semantic import TritonSemantic

_CHECKED = ("exp", "exp2", "log", "log2", "cos", "sin", "sqrt", "sqrt_rn", "rsqrt", "div_rn", "erf", "floor", "ceil")
_COMPUTED = ("binary_op", "unary_op", "ternary_op", "create_fma", "create_erf", "create_rsqrt", "create_dot")


def extend(interpreter: ModuleType) -> None:
    """Changes ``triton.runtime.interpreter`` and the language, which may be half loaded itself.

    The interpreter is loaded where the first kernel is defined that is to be interpreted; the language has some.
    """
    tl.core.validate_block_shape = math.prod
    TritonSemantic.arange = _arange
    for name in _CHECKED:
        _accepted_dtypes(getattr(tl.math, name)).extend(("fp16", "bf16"))
    for place in (tl, tl.core, tl.core.tensor):
        place.cast = _cast
    builder, reduction = interpreter.InterpreterBuilder, interpreter.ReduceScanOpInterface
    builder.get_bf16 = lambda self, value: _narrow(self.get_fp32(value))
    builder.cast_impl = _casting(builder.cast_impl)
    for name in _COMPUTED:
        setattr(builder, name, _in_float32(getattr(builder, name), interpreter.TensorHandle))
    reduction.apply = _reducing(reduction.apply)


def _accepted_dtypes(function: Callable[..., Any]) -> list[str]:
    """The list that Triton's check of a function's arguments looks into."""
    while "dtypes" not in function.__code__.co_freevars:
        function = function.__wrapped__
    return inspect.getclosurevars(function).nonlocals["dtypes"]


def _arange(self: TritonSemantic, start: int, end: int, *, ret_ty: tl.block_type | None = None) -> tl.tensor:
    if end <= start:
        raise ValueError("arange's end argument must be greater than the start argument")
    kind = tl.block_type(tl.int32, [end - start]) if ret_ty is None else ret_ty
    return tl.tensor(self.builder.create_make_range(kind.to_ir(self.builder), start, end), kind)


@tl.core.builtin
def _cast(
    input: tl.tensor,
    dtype: tl.dtype,
    fp_downcast_rounding: str | None = None,
    bitcast: bool = False,
    overflow_mode: str | None = None,
    _semantic: TritonSemantic | None = None,
) -> tl.tensor:
    """``tl.cast``; with ``overflow_mode="saturate"`` values outside of an integer dtype become its ends, NaN 0."""
    source, target = _semantic.to_tensor(input), getattr(dtype, "value", dtype)
    if bitcast:
        return _semantic.bitcast(source, target)
    if overflow_mode not in (None, "trunc", "saturate"):
        raise ValueError(f"Unknown overflow_mode:{overflow_mode} is found.")
    if overflow_mode == "saturate" and target.is_int():
        source = _clipped(_semantic.cast(source, tl.float64) if source.dtype.is_floating() else source, target)
    return _semantic.cast(source, target, fp_downcast_rounding)


def _clipped(source: tl.tensor, target: tl.dtype) -> tl.tensor:
    low = -(2 ** (target.int_bitwidth - 1)) if target.is_int_signed() else 0
    data = numpy.clip(source.handle.data, low, low + 2**target.int_bitwidth - 1)
    return _tensor(type(source.handle)(numpy.nan_to_num(data), source.dtype), source)


def _tensor(handle: Any, like: tl.tensor) -> tl.tensor:
    return tl.tensor(handle, like.type.with_element_ty(handle.dtype) if like.type.is_block() else handle.dtype)


def _is_bfloat16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _wide(handle: Any) -> Any:
    """The handle in float32."""
    bits = handle.data.astype(numpy.uint32) << 16
    return type(handle)(bits.view(numpy.float32), tl.float32)


def _narrow(handle: Any) -> Any:
    """A float32 handle in bfloat16, rounded to the nearest, ties to even."""
    bits = numpy.ascontiguousarray(handle.data).view(numpy.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return type(handle)(numpy.where(numpy.isnan(handle.data), 0x7FC0, rounded).astype(numpy.uint16), tl.bfloat16)


def _in_float32(compute: Callable[..., Any], kind: type) -> Callable[..., Any]:
    """``compute`` with bfloat16 operands in float32; its floats are rounded to bfloat16 if the last operand was."""

    @functools.wraps(compute)
    def computed(self: Any, *operands: Any) -> Any:
        handles = [each for each in operands if isinstance(each, kind)]
        if not any(map(_is_bfloat16, handles)):
            return compute(self, *operands)
        wide = [_wide(each) if isinstance(each, kind) and _is_bfloat16(each) else each for each in operands]
        result = compute(self, *wide)
        return _narrow(result) if _is_bfloat16(handles[-1]) and result.data.dtype == numpy.float32 else result

    return computed


def _casting(cast_impl: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(cast_impl)
    def cast(self: Any, src: Any, dst_type: tl.dtype) -> Any:
        source = _wide(src) if _is_bfloat16(src) else src
        if dst_type.scalar == tl.bfloat16:
            return _narrow(cast_impl(self, source, tl.float32))
        return cast_impl(self, source, dst_type)

    return cast


def _reducing(apply: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(apply)
    def applied(self: Any, input: Any) -> Any:
        if not isinstance(input, tuple):
            return self.apply((input,))[0]
        narrow = [_is_bfloat16(each.handle) for each in input]
        wide = (_tensor(_wide(each.handle), each) if short else each for each, short in zip(input, narrow, strict=True))
        results = apply(self, tuple(wide))
        return tuple(
            _tensor(_narrow(each.handle), each) if short else each for each, short in zip(results, narrow, strict=True)
        )

    return applied
