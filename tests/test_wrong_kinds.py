# SPDX-License-Identifier: Apache-2.0
"""Arguments of a wrong kind are refused by a sentence that names the function, the argument and what came."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import anynpu
from anynpu import _strict
from anynpu._register import operators

NAMES = {  # where errors call a function by another name
    "compress_file": "compress",
    "compress_weight": "weight_compress",
    "decompress_file": "decompress",
    "decompress_weight": "weight_decompress",
    "Int8Codec": "anynpu.c8",
}
RECORDS = ("ActivationScales", "CompressedWeight", "ExpertWeights", "QuantizedWeight")  # hold whatever they are given
MODULES = ("LinearExperts", "ExpertParallelMoE", "QuantizedLinear")  # made by other modules, or wanting processes
WRONG = (None, 3, "text", [1], 2.5, object())


def entries():
    for module in (anynpu, anynpu.formats, anynpu.nn):
        for name in module.__all__:
            function = getattr(module, name)
            if callable(function) and name not in (*RECORDS, *MODULES):
                yield name, function


def required(function):
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


ENTRIES = list(entries())


@pytest.mark.parametrize("name, function", ENTRIES, ids=[name for name, _ in ENTRIES])
def test_required_arguments_of_every_public_function(name, function, monkeypatch):
    monkeypatch.setattr(_strict, "_soc", _strict._soc)  # strict(None) is no error, and would hold for later tests
    names = required(function)
    refused = 0
    for value in WRONG if names else ():
        try:
            function(**dict.fromkeys(names, value))
        except (TypeError, ValueError, FileNotFoundError) as error:
            refused += 1
            assert str(error).startswith(f"{NAMES.get(name, name)}: ") or "QuantExperts: " in str(error), error
            if isinstance(error, TypeError):
                assert re.search(rf"\b(?:{'|'.join(names)}) must be .*, got ", str(error)), error
    assert refused >= min(len(names), 1)


@pytest.mark.parametrize("name", operators)
def test_each_argument_of_every_operator(name):
    if not hasattr(anynpu, name):
        pytest.skip("no public function")
    function, sample = getattr(anynpu, name), next(iter(operators[name].samples()))
    arguments = operators[name].overload._schema.arguments
    given = dict(zip((argument.name for argument in arguments), sample.args, strict=False))
    for parameter in inspect.signature(function).parameters:
        for value in (object(), "text", 2.5):
            try:
                function(**{**given, parameter: value})
            except (TypeError, ValueError, NotImplementedError) as error:
                assert str(error).startswith(f"{name}: "), error
                assert parameter in str(error), error


def test_none_for_the_only_tensor():
    with pytest.raises(TypeError, match="^int4_pack: weight must be a tensor, got NoneType$"):
        anynpu.int4_pack(None)
    with pytest.raises(TypeError, match="^swiglu: x must be a tensor, got NoneType$"):
        anynpu.swiglu(None)


def test_only_bools_are_bools():
    x, scale = torch.ones(2, 2), torch.ones(2)
    for value, kind in ((None, "NoneType"), (2.5, "float"), (3, "int")):
        with pytest.raises(TypeError, match=f"^quantize: div_mode must be a bool, got {kind}$"):
            anynpu.quantize(x, scale, None, torch.int8, 1, value)


@pytest.mark.parametrize("function", [anynpu.formats.compress_file, anynpu.formats.decompress_file])
def test_files_may_be_named_by_strings(function, tmp_path):
    with pytest.raises(FileNotFoundError):
        function(str(tmp_path / "missing"), str(tmp_path / "target"))
