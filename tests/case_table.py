# SPDX-License-Identifier: Apache-2.0
"""Reads tests/cases/<operator>.yaml and builds the tensors that its rows describe (see tests/cases/README.md)."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

import anynpu

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Case:
    """One row: `args` holds tensors and plain values by argument name; `spec` the row as written."""

    name: str
    args: dict
    error: dict | None
    spec: dict


def load(operator: str, front_end: str = "python") -> list[Case]:
    """The rows of one table that `front_end` ("python" or "c") can express."""
    other = {"python": "c_only", "c": "python_only"}[front_end]
    return [_build(row) for row in _rows(operator) if not row.get(other)]


@functools.cache  # several tests ask for each table
def _rows(operator: str) -> list[dict]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of libyaml: in PyYAML's wheels, six times as fast
    return yaml.load((CASES / f"{operator}.yaml").read_text(), loader)


def valid_calls(operator: str, wanted: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Runs a test with each `case` of a table that must succeed."""
    return _each(case for case in load(operator) if case.error is None and wanted(case))


def invalid_calls(operator: str) -> pytest.MarkDecorator:
    """Runs a test with each `case` of a table that must be refused."""
    return _each(case for case in load(operator) if case.error is not None)


def _each(cases: Iterable[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases])


def _build(row: dict) -> Case:
    generator = torch.Generator().manual_seed(row.get("seed", zlib.crc32(row["name"].encode())))
    args = {key: _value(value, generator) for key, value in row["args"].items()}
    for name in ("dtype", "output_dtype"):
        if name in args:
            args[name] = getattr(torch, args[name])
    return Case(row["name"], args, row.get("error"), row)


def _value(value: object, generator: torch.Generator) -> object:
    if isinstance(value, dict):
        return _tensor(value, generator)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_tensor(each, generator) for each in value]
    return value


def _tensor(spec: dict, generator: torch.Generator) -> torch.Tensor:
    dtype = getattr(torch, spec["dtype"])
    if "values" in spec:
        tensor = torch.tensor(spec["values"], dtype=torch.float64 if dtype.is_floating_point else torch.int64).to(dtype)
    else:
        tensor = _laid_out(spec, dtype, generator)
    if spec.get("scale_encoding") == "trans_quant_param":
        tensor = anynpu.trans_quant_param(tensor.float().contiguous())
    if spec.get("scale_encoding") == "pack_scale":
        tensor = anynpu.pack_scale(tensor)
    return tensor


def _laid_out(spec: dict, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    shape = list(spec["shape"])
    layout = spec.get("layout", "contiguous")
    pack = spec.get("pack") == "int4"
    if layout == "contiguous":
        return _packed(_random(shape, spec, dtype, generator), pack)
    if layout == "transposed":
        stored = [*shape[:-2], shape[-1], shape[-2]]
        return _packed(_random(stored, spec, dtype, generator), pack).transpose(-1, -2)
    if layout == "sliced":
        return _random([*shape[:-1], 2 * shape[-1]], spec, dtype, generator)[..., ::2]
    raise ValueError(f"unknown layout {layout!r}")


def _packed(tensor: torch.Tensor, pack: bool) -> torch.Tensor:
    if not pack:
        return tensor
    return anynpu.int4_pack(tensor.flatten(0, -2)).unflatten(0, tensor.shape[:-1])


def _random(shape: list[int], spec: dict, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype.is_floating_point:
        if "range" in spec:
            low, high = spec["range"]
            return (torch.rand(shape, generator=generator) * (high - low) + low).to(dtype)
        return torch.randn(shape, generator=generator).to(dtype)
    low, high = spec.get("range", [-128, 127])
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)
