# SPDX-License-Identifier: Apache-2.0
"""The checklist for adding an operator: what every registered operator must have."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import anynpu
from anynpu import _register
from anynpu._register import operators
from anynpu._repeat import PlannedKernel

ROOT = Path(__file__).parents[1]
NAMES = sorted(operators)


def folder(name: str) -> str:
    """The stem of the operator's folder: a folder may register an operator and its inverse."""
    return operators[name].reference.__module__.split(".")[-2]


@pytest.mark.parametrize("name", NAMES)
def test_is_documented(name):
    page = ROOT / "docs" / "ops" / f"{folder(name)}.md"
    assert page.exists(), f"add {page.relative_to(ROOT)}"
    assert name in page.read_text()
    text = inspect.getdoc(getattr(anynpu, name))
    assert ">>>" in text, f"anynpu.{name} needs a doctest"
    assert "Raises:" in text or name.endswith("_unpack")


@pytest.mark.parametrize("name", NAMES)
def test_has_reference_and_cases(name):
    assert getattr(anynpu.reference, name) is operators[name].reference
    assert (ROOT / "tests" / "cases" / f"{folder(name)}.yaml").exists()
    assert list(operators[name].samples())


@pytest.mark.parametrize("stem", sorted({folder(name) for name in NAMES}))
def test_has_a_native_folder(stem):
    if not (ROOT / "src" / "anynpu" / "ops" / stem / "cpu.py").exists():
        pytest.skip(f"{stem} has no native kernel of its own")
    assert (ROOT / "csrc" / "ops" / stem / f"{stem}.cc").exists()
    assert importlib.import_module(f"anynpu.ops.{stem}.cpu")


@pytest.mark.parametrize("name", NAMES)
def test_has_no_dtype_for_a_default(name):
    """AOTInductor writes such a default, where a graph leaves it out, as a number, and does not read it again."""
    assert not re.search(r"ScalarType \w+=", operators[name].schema)


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    for sample in operators[name].samples():
        torch.library.opcheck(operators[name].overload, sample.args)


@pytest.mark.parametrize("name", NAMES)
def test_samples_equal_reference_when_compiled(name):
    operator = operators[name]
    compiled = torch.compile(lambda *args: operator.overload(*args), fullgraph=True, dynamic=True, backend="aot_eager")
    for sample in operator.samples():
        torch.compiler.reset()  # samples differ in more than sizes; together they exceed the limit of recompilations
        torch.testing.assert_close(compiled(*sample.args), operator.overload(*sample.args), rtol=0, atol=0)


NOT_IN_SCHEMA = {"anynpu.ops.rope_kv_cache": ("quant_mode", "input_layout")}  # of the public function, one value each


def takers(name):
    """The functions that are called with the arguments of an operator."""
    operator = operators[name]
    cpu = operator.cpu._plan if isinstance(operator.cpu, PlannedKernel) else operator.cpu
    return [getattr(anynpu, name), operator.fake, cpu, operator.reference, operator.error_bound]


def assert_takes(function, declared):
    """The arguments in the order and with the defaults of the schema, but for a dtype, which has no default there."""
    further = NOT_IN_SCHEMA.get(function.__module__, ())
    parameters = inspect.signature(function).parameters.values()
    given = {parameter.name: parameter.default for parameter in parameters if parameter.name not in further}
    given = {name: None if isinstance(default, torch.dtype) else default for name, default in given.items()}
    empty = inspect.Parameter.empty
    defaults = {each.name: each.default_value if each.has_default_value() else empty for each in declared}
    assert list(given.items()) == list(defaults.items()), f"{function.__module__}.{function.__name__}"


@pytest.mark.parametrize("name", NAMES)
def test_all_functions_take_the_arguments_of_the_schema(name):
    for function in takers(name):
        if function is not None:
            assert_takes(function, operators[name].overload._schema.arguments)


@pytest.mark.parametrize("name", NAMES)
def test_cuda_kernel_takes_the_arguments_of_the_schema(name):
    pytest.importorskip("triton")
    assert_takes(operators[name].cuda_kernel, operators[name].overload._schema.arguments)


@pytest.mark.parametrize("name", NAMES)
def test_public_function_passes_each_argument_in_its_place(name, monkeypatch):
    function = getattr(anynpu, name)
    passed = []
    for called in [called for called in function.__code__.co_names if called.startswith("_")]:
        monkeypatch.setitem(function.__globals__, called, lambda *args: passed.extend(args) or (None,) * 3)
    declared = [[argument.name] for argument in operators[name].overload._schema.arguments]
    function(**{argument: [argument] for (argument,) in declared})
    assert passed == declared


WRITERS = [name for name in NAMES if "!" in operators[name].schema]


@pytest.mark.parametrize("name", WRITERS)
def test_version_of_what_is_written_rises(name):
    """Autograd refuses a saved tensor that has changed since, and what is made of a tensor is made anew, by it."""
    declared = operators[name].overload._schema.arguments
    names = [argument.name for argument in declared if argument.alias_info and argument.alias_info.is_write]
    for sample in operators[name].samples():
        named = dict(zip([argument.name for argument in declared], sample.args, strict=False))
        tensors = {argument: value for argument, value in named.items() if isinstance(value, torch.Tensor)}
        for function in (operators[name].overload, *[getattr(anynpu, name)] * 3):  # the last call is a repeated one
            before = {argument: tensor._version for argument, tensor in tensors.items()}
            function(**named)
            assert [argument for argument in tensors if tensors[argument]._version > before[argument]] == names


def test_saved_cache_that_has_changed_is_refused():
    [sample] = itertools.islice(operators["rope_kv_cache"].samples(), 1)
    named = sample.args._asdict()
    factor = torch.ones(named["k_cache"].shape, requires_grad=True)
    product = factor * named["k_cache"]
    anynpu.rope_kv_cache(**named)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        anynpu.rope_kv_cache(**named | {"k_cache": torch.zeros_like(named["k_cache"])})  # it has no version


def test_importing_anynpu_leaves_triton_alone():
    code = "import sys, anynpu; assert 'triton' not in sys.modules, 'it takes seconds'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_triton_is_named():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from anynpu._register import operators\n"
        "try: operators['int4_pack'].cuda_kernel\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "int4_pack: CUDA tensors need Triton, which is not installed: pip install triton\n"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("anynpu.calibrate_kv", "anynpu.kv_cache: needs the package transformers"),
        ("empty_model({}, None, False, 0)", "load_checkpoint: needs the package transformers"),
        ("load_gguf('model.gguf', None, print)", "load_checkpoint: GGUF files need transformers and gguf"),
    ],
)
def test_missing_transformers_is_named(call, sentence):
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import anynpu\n"
        "from anynpu.checkpoints.gguf import load_gguf\n"
        "from anynpu.checkpoints.model import empty_model\n"
        f"try: {call}\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == f"{sentence}: pip install 'anynpu[demo]'\n"


def test_tensors_of_two_devices_are_refused():
    x, smooth = torch.empty(2, 8, device="meta"), torch.ones(8)
    with pytest.raises(ValueError, match="dynamic_quant: smooth_scales must be on the device of x, meta, got cpu"):
        _register._on_cuda(operators["dynamic_quant"])(x, smooth)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: anynpu.int4_pack([1]), TypeError, "int4_pack: weight must be a tensor, got list"),
        (
            lambda: anynpu.weight_quant_matmul(*[torch.ones(8, 8)] * 2, torch.ones(8), group_size=1.5),
            TypeError,
            "weight_quant_matmul: group_size must be an int, got float",
        ),
        (
            lambda: anynpu.grouped_matmul([1], [torch.ones(1, 1)]),
            TypeError,
            "grouped_matmul: x must be a list of tensors, got a list of something else",
        ),
        (lambda: anynpu.grouped_matmul([], []), ValueError, "grouped_matmul: Invalid inputs: neither x nor weight"),
    ],
)
def test_arguments_of_another_kind_are_named(call, error, sentence):
    with pytest.raises(error, match=re.escape(sentence)):
        call()
