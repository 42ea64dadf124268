# SPDX-License-Identifier: Apache-2.0
"""The flat C ABI called with structs that the Python front end never makes: nonsense, strided and int4 outputs."""

from __future__ import annotations

import ctypes
import math
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from random_calls.compare import OPERATORS, draw_call

import anynpu
from anynpu import _native
from anynpu._register import operators
from anynpu._repeat import Repeats

HEADER = Path(__file__).parents[1] / "include" / "anynpu.h"
CHECKS = dict(re.findall(r"anynpu_(\w+)_check\(const anynpu_(\w+)_args\*", HEADER.read_text()))
TENSOR = struct.Struct("@P4i8q8q")
OK, NULL_ARG, BAD_DTYPE, BAD_SHAPE = range(4)
ND, NZ = 2, 29
FLOAT32, INT8, INT32, UINT8, INT64, INT4 = 0, 2, 3, 4, 9, 29
BOOL, DOUBLE = 12, 11
# Axes whose size nothing else in a call has, or only roughly: blocks of a compressed or prepacked weight, experts,
# groups, rows to choose from, pages of a cache, and what may go beyond what is read.
FREE_AXES = {
    "compressed_matmul": {("x", -1), ("stream", -1), ("y", -1)},
    "dequant_swiglu_quant": {("group_index", -1)},
    "fused_attention": {
        ("block_table", -1),
        *((name, axis) for name in ("mask", "bias") for axis in (-2, -1)),
        *((name, axis) for name in ("k_scale", "k_offset", "v_scale", "v_offset") for axis in (-4, -3)),
    },
    "grouped_matmul_combine": {("scale", -2), ("shared_input", -2), ("y", -2)},
    "kv_cache_attention": {("block_table", -1)},
    "moe_finalize_routing": {("expanded_rows", -3), ("expanded_rows", -2), ("bias", -2)},
    "moe_gating_topk_softmax": {("x", -1)},
    "quant_matmul": {("x1", -1), ("y", -1)},
    "rope_kv_cache": {("activation_scale", -1), ("bias", -1)},
    "weight_compress": {("weight", -2), ("weight", -1)},
    "weight_decompress": {("stream", -1), ("weight", -2), ("weight", -1)},
    "weight_quant_matmul": {("x", -1), ("y", -1)},
    "weight_quant_prepack": {("weight", -2), ("weight", -1)},
}


# Tensors without which another argument of the same call is wrong.
NEEDED_BY_OTHERS = {
    "dequant_swiglu_quant": {"weight_scale", "group_index"},
    "fused_attention": {"block_table", "out_scale", "q_rope", "k_rope"},
    "moe_finalize_routing": {"expert_idx"},
    "rope_kv_cache": {"k", "v"},
    "trans_quant_param": {"offset"},
    "weight_quant_matmul": {"quant_scale"},
}


def run(name, arguments):
    return getattr(_native.library, f"anynpu_{name}")(arguments, None, ctypes.c_size_t(0))


def check(name, arguments):
    return getattr(_native.library, f"anynpu_{name}_check")(arguments, ctypes.byref(ctypes.c_size_t()))


def sentence():
    return _native.library.anynpu_last_error().decode()


def view(tensor, dtype=None, shape=None, strides=None, format=ND, nz_c0=0):
    """A torch tensor as an anynpu_tensor, with whatever is named replaced."""
    shape = list(tensor.shape if shape is None else shape)
    strides = list(tensor.stride() if strides is None else strides)
    padding = [0] * (8 - len(shape))
    code = _native.DTYPE_CODES[tensor.dtype] if dtype is None else dtype
    return TENSOR.pack(tensor.data_ptr(), code, format, len(shape), nz_c0, *shape, *padding, *strides, *padding)


# Tensors that no kernel takes: where there are some, torch's operators compute.
NOT_IN_STRUCTS = {"moe_gating_topk": {"input_ids", "tid2eid"}}


@pytest.mark.parametrize("name", sorted(CHECKS.keys() & operators.keys()))
def test_structs_begin_with_the_tensors_of_the_operator(name):
    """A plan takes them in the order of the schema and puts their addresses one after the other."""
    [struct_body] = re.findall(rf"typedef struct {{([^}}]*)}} anynpu_{CHECKS[name]}_args;", HEADER.read_text())
    members = re.findall(r"anynpu_tensor (\w+);", struct_body)
    declared = [each.name for each in operators[name].overload._schema.arguments if "Tensor" in str(each.type)]
    tensors = [each for each in declared if each not in NOT_IN_STRUCTS.get(name, ())]
    assert members[: len(tensors)] == tensors


def nonsense(random):
    """An anynpu_tensor without data whose members are each plausible, extreme or wrong."""
    sizes = [0, 1, 2, 3, 8, 16, 40, 2**31, 2**62, 2**63 - 1, -1, -(2**63)]
    return TENSOR.pack(
        0,
        random.choice([*_native.DTYPE_CODES.values(), INT4, 5, -1, 2**31 - 1]),
        random.choice([ND, ND, ND, NZ, NZ, 0, 1, -1]),
        random.choice([1, 2, 2, 3, 3, 4, 8, 0, 9, -1, 2**31 - 1]),
        random.choice([0, 0, 8, 16, 1, 7, -1, 2**31 - 1]),
        *random.choices(sizes, weights=[1, 6, 6, 6, 6, 6, 6, 1, 1, 1, 1, 1], k=16),
    )


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_nonsense_is_refused_in_a_sentence(name):
    random = Random(name)
    size = _native.library.anynpu_sizeof(f"{CHECKS[name]}_args".encode())
    assert size > 0
    for _ in range(1000):
        same = nonsense(random)  # tensors that agree get further into a check
        views = [same if random.random() < 0.7 else nonsense(random) for _ in range(size // TENSOR.size)]
        rest = random.choice([bytes(size % TENSOR.size), random.randbytes(size % TENSOR.size)])
        arguments = b"".join(views) + rest
        status = check(name, arguments)
        assert 0 <= status <= 7
        if status != OK:
            assert re.match(r"\w+: .{8}", sentence())
            assert run(name, arguments) == status


def recorded_structs(monkeypatch, name):
    """Of a few valid calls of an operator: the functions of the flat ABI, their tensors and what follows these."""
    recorded, pack = [], _native.Call._arguments

    def arguments(self, tensors, scalars):
        made = pack(self, tensors, scalars)
        views = [TENSOR.unpack_from(made, i * TENSOR.size) for i in range(len(tensors))]
        recorded.append((self._function.__name__.removeprefix("anynpu_"), views, made[len(tensors) * TENSOR.size :]))
        return made

    with monkeypatch.context() as patched:
        patched.setattr(_native.Call, "_arguments", arguments)
        patched.setattr(Repeats, "find", lambda *_: None)  # of tests before this one
        for sample in operators[name].samples():
            operators[name].overload(*sample.args)
        for seed in range(12) if name in OPERATORS else ():
            operators[name].overload(**draw_call(name, seed, 40))
    return recorded


def with_other_sizes(random, views):
    """The tensors without data, contiguous, and a size or two exchanged for others wherever they stand."""
    shapes = [list(view[5 : 5 + view[3]]) for view in views]
    for _ in range(random.choice([1, 1, 2])):
        size = random.choice(sum(shapes, []))
        other = random.choice([0, 0, 1, 2**16, 2**31 - 1, 2**31, 2 ** random.randint(32, 62), 2**63 - 1])
        shapes = [[other if each == size else each for each in shape] for shape in shapes]
    made = []
    for (_, dtype, format, ndim, c0, *_), shape in zip(views, shapes, strict=True):
        strides = [(math.prod(shape[axis + 1 :]) + 2**63) % 2**64 - 2**63 for axis in range(ndim)]
        padding = [0] * (8 - ndim)
        made.append(TENSOR.pack(0, dtype, format, ndim, c0, *shape, *padding, *strides, *padding))
    return made, max(sum(shapes, []))


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_sizes_beyond_memory_are_refused_or_measured(monkeypatch, name):
    random = Random(name)
    recorded = recorded_structs(monkeypatch, name)
    if not recorded:
        pytest.skip("torch does all of it")
    for _ in range(1000):
        function, views, rest = random.choice(recorded)
        tensors, largest = with_other_sizes(random, views)
        status = check(function, b"".join(tensors) + rest)
        assert 0 <= status <= 5
        if status != OK or largest <= 2**16:  # others without elements are loops that take long
            assert run(function, b"".join(tensors) + rest) in ((status,) if status != OK else (OK, NULL_ARG, BAD_SHAPE))


def valid_structs(monkeypatch, name):
    """As recorded_structs, and of the functions that Python does not call."""
    absent, ones = bytes(TENSOR.size), torch.ones
    for_c_alone = {
        "float_elementwise": ([view(ones(3, 5)), view(ones(3, 5)), view(ones(3, 5))], struct.pack("if", 0, 1)),
        "float_matmul": ([view(ones(2, 3, 5)), view(ones(5, 4)), view(ones(2, 3, 4))], b""),
        "rms_norm": (
            [view(ones(3, 5)), view(ones(3, 5)), view(ones(5)), view(ones(3, 5)), view(ones(3, 1)), view(ones(3, 5))],
            struct.pack("fi", 1e-6, 0),
        ),
        "weight_decompress": (
            [view(ones(256, dtype=torch.int8)), view(ones(8, dtype=torch.int8)), view(ones(8, 20, dtype=torch.int8))],
            struct.pack("2i", 0, 0),
        ),
        "int8_linear": (
            [view(ones(3, 64)), view(ones(64, 8, dtype=torch.int8)), view(ones(8)), view(ones(8)), view(ones(1))]
            + [absent, absent, view(ones(3, 8))],
            struct.pack("q2i", 0, 0, 0),
        ),
    }
    if name not in for_c_alone:
        return recorded_structs(monkeypatch, name)
    tensors, rest = for_c_alone[name]
    return [(name, [TENSOR.unpack(tensor) for tensor in tensors], rest)]


def tensor_names(function):
    """The tensors of its argument struct, in their order."""
    [members] = re.findall(rf"typedef struct \{{([^{{}}]*)\}} anynpu_{CHECKS[function]}_args;", HEADER.read_text())
    return re.findall(r"anynpu_tensor (\w+);", members)


def malformed(function, argument, tensor):
    """The tensor with one member that no function takes, and what is said of it."""
    data, dtype, format, ndim, c0, *sizes = tensor
    name = "x2" if (function, argument) == ("int8_linear", "weight") else argument  # quant_matmul checks it
    if (function, argument) != ("grouped_matmul_combine", "y"):  # whose dtype says which arguments there are
        yield (data, 77, format, ndim, c0, *sizes), f"{name} has an unknown dtype code 77"
    yield (data, dtype, 3, ndim, c0, *sizes), f"format of {name} must be ND (2) or FRACTAL_NZ (29), got 3"
    for axes in (9, -1):
        yield (data, dtype, format, axes, c0, *sizes), f"{name} must have 0 to 8 axes, got {axes}"
    yield (data, dtype, format, 2, c0, -1, *sizes[1:]), f"shape of {name} is negative or too large"
    yield (data, dtype, format, 2, c0, 2**62, 2**62, *sizes[2:]), f"shape of {name} is negative or too large"


def wrong_members(function, argument, tensor):
    """The tensor with one member exchanged for what the function does not take."""
    data, dtype, format, ndim, c0, *sizes = tensor
    if function != "cast":
        yield data, BOOL if dtype != BOOL else DOUBLE, format, ndim, c0, *sizes
    if argument not in ("weight", "x2"):  # of products
        yield data, dtype, NZ, ndim, c0, *sizes


def wrong_sizes(function, argument, tensor):
    """The tensor, contiguous, with one axis longer or shorter; not those of 1, which broadcast."""
    data, dtype, format, ndim, c0, *sizes = tensor
    for axis in range(ndim):
        for size in (sizes[axis] + 1, sizes[axis] - 1):
            free = (argument, axis - ndim) in FREE_AXES.get(function, ())
            if min(size, sizes[axis]) > 1 and not free:
                shape = [*sizes[:axis], size, *sizes[axis + 1 : ndim]]
                strides = [math.prod(shape[i + 1 :]) for i in range(ndim)]
                padding = [0] * (8 - ndim)
                yield data, dtype, format, ndim, c0, *shape, *padding, *strides, *padding


FUNCTIONS = sorted({*operators, *CHECKS} - {"format_cast", "weight_compress"})  # which others call


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_tensor_of_a_valid_call_is_checked(monkeypatch, name):
    for function, views, rest in valid_structs(monkeypatch, name):
        views = [(0, *each[1:]) for each in views]  # so that what is not refused is not read
        tensors = [TENSOR.pack(*each) for each in views]
        assert check(function, b"".join(tensors) + rest) == OK

        def run_with(i, changed, function=function, tensors=tensors, rest=rest):
            return run(function, b"".join([*tensors[:i], changed, *tensors[i + 1 :]]) + rest)

        for i, argument in enumerate(tensor_names(function)):
            if views[i][2] == 0:
                continue
            for changed, said in malformed(function, argument, views[i]):
                assert run_with(i, TENSOR.pack(*changed)) != OK
                assert said in sentence(), (function, argument, changed)
            for make in (wrong_members, wrong_sizes):
                for changed in make(function, argument, views[i]):
                    status = run_with(i, TENSOR.pack(*changed))
                    assert status != OK and not sentence().endswith("is a null pointer"), (function, argument, changed)
            status = check(function, b"".join([*tensors[:i], bytes(TENSOR.size), *tensors[i + 1 :]]) + rest)
            needed = argument in NEEDED_BY_OTHERS.get(function, ())
            assert needed or status in (OK, NULL_ARG), (function, argument, sentence())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_tensor_of_a_valid_call_needs_data(monkeypatch, name):
    for function, views, rest in valid_structs(monkeypatch, name):
        tensors = [TENSOR.pack(*each) for each in views]
        for i, argument in enumerate(tensor_names(function)):
            _, _, format, ndim, _, *sizes = views[i]
            if format != 0 and math.prod(sizes[:ndim]) > 0:
                changed = TENSOR.pack(0, *views[i][1:])
                assert run(function, b"".join([*tensors[:i], changed, *tensors[i + 1 :]]) + rest) == NULL_ARG
                assert re.fullmatch(r"\w+: data of \w+ is a null pointer", sentence()), (function, argument)


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_null_pointers_are_refused(name):
    assert check(name, None) == NULL_ARG
    assert run(name, None) == NULL_ARG
    size = _native.library.anynpu_sizeof(f"{CHECKS[name]}_args".encode())
    assert getattr(_native.library, f"anynpu_{name}_check")(bytes(size), None) == NULL_ARG
    assert run(name, bytes(size)) == NULL_ARG


def test_present_tensor_without_data_is_refused():
    empty = view(torch.zeros(0, 4))
    arguments = b"\0" * 8 + view(torch.zeros(3, 4))[8:]
    assert run("cast", arguments + view(torch.zeros(3, 4))) == NULL_ARG
    assert sentence() == "cast: data of x is a null pointer"
    assert run("cast", b"\0" * 8 + empty[8:] + empty) == OK


@pytest.mark.parametrize("strides", [(1, 7), (20, 2), (-9, 1), (5, -1)])
def test_cast_into_a_strided_view_writes_nothing_else(strides, isa):
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    y = torch.full((400,), -1, dtype=torch.int16)
    inside = y[200:]
    assert run("cast", view(x * 100) + view(inside, shape=(7, 5), strides=strides)) == OK
    expected = torch.full((400,), -1, dtype=torch.int16)
    places = 200 + torch.arange(7)[:, None] * strides[0] + torch.arange(5) * strides[1]
    expected[places] = anynpu.reference.cast(x * 100, torch.int16)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("strides", [(0, 1), (4, 1), (1, 1), (2, 3), (5, 0)])
def test_output_that_overlaps_itself_is_refused(strides):
    y = torch.zeros(100)
    assert check("cast", view(torch.zeros(7, 5)) + view(y, shape=(7, 5), strides=strides)) == BAD_SHAPE
    assert "y must not overlap itself" in sentence()


def test_cast_reads_negative_strides():
    x = torch.arange(12, dtype=torch.int32)
    y = torch.empty(3, 4)
    assert run("cast", view(x[11:], shape=(3, 4), strides=(-4, -1)) + view(y)) == OK
    assert torch.equal(y, x.flip(0).reshape(3, 4).float())


@pytest.mark.parametrize("shape", [(16, 24), (3, 10)])
def test_quantize_writes_int4_bytes(shape, isa):
    x = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y = torch.full((shape[0] * shape[1] // 2 + 32,), 0x55, dtype=torch.uint8)
    absent = bytes(TENSOR.size)
    output = view(y[16:], dtype=INT4, shape=shape, strides=(shape[1], 1))
    assert run("quantize", view(x) + view(torch.ones(1)) + absent + output + struct.pack("q2i", -1, 0, 0)) == OK
    codes = anynpu.reference.quantize(x.clamp(-8, 7), torch.ones(1), None, torch.int8)
    assert torch.equal(y[16:-16].reshape(shape[0], -1), anynpu.reference.int4_pack(codes.int(), torch.uint8))
    assert y[:16].eq(0x55).all() and y[-16:].eq(0x55).all()


def test_quantize_into_a_transposed_view():
    x = 50 * torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(40, 30, dtype=torch.int8)
    scales, absent = torch.rand(40) + 0.5, bytes(TENSOR.size)
    assert run("quantize", view(x) + view(scales) + absent + view(y.t()) + struct.pack("q2i", 1, 1, 0)) == OK
    assert torch.equal(y.t(), anynpu.reference.quantize(x, scales, None, torch.int8))


@pytest.mark.parametrize(
    ("name", "weight", "packed", "match"),
    [
        ("int4_pack", {}, {"strides": (4, 2)}, "packed should be contiguous"),
        ("int4_pack", {}, {"format": NZ}, "format"),
        ("int4_pack", {"format": NZ, "nz_c0": 48}, {"format": NZ, "nz_c0": 6}, "must be 8, 16, 32 or 64 columns wide"),
        ("int4_pack", {"format": NZ, "nz_c0": 4}, {"format": NZ, "nz_c0": 8}, "must be 8, 16, 32 or 64 columns wide"),
        ("int4_pack", {"format": NZ}, {"format": NZ, "nz_c0": 4}, "blocks of packed must be 64 int4 wide, got 32"),
        ("int4_unpack", {}, {"strides": (4, 2)}, "packed should be contiguous"),
        ("int4_unpack", {"strides": (32, 2)}, {}, "weight should be contiguous"),
        ("int4_unpack", {"format": NZ}, {}, "ND"),
    ],
)
def test_layouts_of_int4(name, weight, packed, match):
    given = [
        view(torch.zeros(3, 16, dtype=torch.int32), **weight),
        view(torch.zeros(3, 2, dtype=torch.int32), **packed),
    ]
    scratch = struct.pack("2i", 0, 0) if name == "int4_pack" else b""
    assert check(name, b"".join(given if name == "int4_pack" else given[::-1]) + scratch) == BAD_SHAPE
    assert match in sentence()


@pytest.mark.parametrize("shape", [(16, 64), (20, 130), (2, 33, 66)])
def test_format_cast_of_int4_tensors(shape):
    values = torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    x = anynpu.int4_pack(values, torch.uint8)
    expected = anynpu.reference.nd_to_nz(x)  # 32 bytes are 64 columns
    storage = torch.full(expected.shape, 0x55, dtype=torch.uint8)
    strides = values.stride()
    logical = view(x, dtype=INT4, shape=shape, strides=strides)
    nz = view(storage, dtype=INT4, shape=shape, strides=strides, format=NZ)
    assert run("format_cast", logical + nz) == OK
    assert torch.equal(storage, expected)
    back = torch.zeros_like(x)
    assert run("format_cast", nz + view(back, dtype=INT4, shape=shape, strides=strides)) == OK
    assert torch.equal(back, x)


@pytest.mark.parametrize(
    ("x", "y", "status", "match"),
    [
        ({"dtype": 77}, {}, BAD_DTYPE, "x has an unknown dtype code 77"),
        ({}, {"dtype": 77}, BAD_DTYPE, "y has an unknown dtype code 77"),
        ({}, {"dtype": 3}, BAD_DTYPE, "y must be float32 as x is, got int32"),
        ({}, {"shape": (20, 51)}, BAD_SHAPE, "y must have the shape of x, (20, 50), got (20, 51)"),
        ({"shape": (50,)}, {"shape": (50,)}, BAD_SHAPE, "x must have at least two axes, got (50,)"),
        ({"strides": (2**61, 1)}, {}, BAD_SHAPE, "a stride of x is too large"),
        ({"shape": (2**30, 2**27)}, {"shape": (2**30, 2**27), "nz_c0": 2**31 - 1}, BAD_SHAPE, "is too large"),
        ({"dtype": INT4, "shape": (20, 51)}, {"dtype": INT4, "shape": (20, 51)}, BAD_SHAPE, "must be even for int4"),
        ({"dtype": INT4}, {"dtype": INT4, "nz_c0": 63}, BAD_SHAPE, "must be even for int4, got 50 and 63"),
        ({"dtype": INT4, "strides": (52, 1)}, {"dtype": INT4}, BAD_SHAPE, "must be contiguous when it is int4"),
    ],
)
def test_format_cast_refuses(x, y, status, match):
    def described(changes, **more):
        shape = changes.get("shape", (20, 50))
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return view(torch.zeros(1), **{"shape": shape, "strides": strides} | changes | more)

    assert check("format_cast", described(x) + described(y, format=NZ)) == status
    assert match in sentence()


def test_format_cast_needs_data():
    tensors = [view(torch.zeros(20, 50)), view(torch.zeros(7, 2, 16, 8), shape=(20, 50), strides=(50, 1), format=NZ)]
    for i, name in enumerate("xy"):
        changed = [*tensors[:i], b"\0" * 8 + tensors[i][8:], *tensors[i + 1 :]]
        assert run("format_cast", b"".join(changed)) == NULL_ARG
        assert sentence() == f"format_cast: data of {name} is a null pointer"


def test_format_cast_of_a_transposed_view():
    """Shape and strides of the FRACTAL_NZ tensor are those of w.t(), its bytes those of w."""
    w = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    storage = anynpu.reference.nd_to_nz(w)
    out = torch.empty(50, 20)
    nz = view(storage, shape=(50, 20), strides=(1, 50), format=NZ)
    assert run("format_cast", nz + view(out)) == OK
    assert torch.equal(out, w.t())
    written = torch.full_like(storage, 7)
    assert run("format_cast", view(out) + view(written, shape=(50, 20), strides=(1, 50), format=NZ)) == OK
    assert torch.equal(written, storage)


def test_trans_quant_param_writes_unsigned_and_strided_words():
    scale = torch.rand(10)
    words = torch.zeros(20, dtype=torch.uint64)
    param = view(words, shape=(10,), strides=(2,))
    assert run("trans_quant_param", view(scale) + bytes(TENSOR.size) + param + struct.pack("2i", 0, 0)) == OK
    assert torch.equal(words.view(torch.int64)[::2], anynpu.reference.trans_quant_param(scale))
    assert words.view(torch.int64)[1::2].eq(0).all()


CLOSED = """
import _ctypes, ctypes, struct, sys
values = (ctypes.c_float * 2**20)()
tensor = lambda dtype: struct.pack("@P4i8q8q", ctypes.addressof(values), dtype, 2, 1, 0, 2**20, *7 * [0], 1, *7 * [0])
for _ in range(2):
    library = ctypes.CDLL(sys.argv[1])
    assert library.anynpu_cast(tensor(0) + tensor(3), None, ctypes.c_size_t(0)) == 0
    _ctypes.dlclose(library._handle)
"""


def test_the_library_may_be_closed_though_threads_of_openmp_go_on():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", CLOSED, str(_native.library_path())], env=environment, check=True)


def test_a_library_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "broken.so").write_bytes(b"no library")
    done = subprocess.run(
        [sys.executable, "-c", "import anynpu"],
        env={**os.environ, "ANYNPU_LIBRARY": str(tmp_path / "broken.so")},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert f"ImportError: anynpu: the native library cannot be loaded: {tmp_path / 'broken.so'}" in done.stderr


def described(dtype, *shape, strides=None, format=ND):
    """A tensor without data."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))] if strides is None else strides
    padding = [0] * (8 - len(shape))
    return TENSOR.pack(0, dtype, format, len(shape), 0, *shape, *padding, *strides, *padding)


def check_described(function, scalars, **tensors):
    """Checks a call of the tensors named, the others absent."""
    absent = bytes(TENSOR.size)
    return check(function, b"".join(tensors.get(name, absent) for name in tensor_names(function)) + scalars)


def attention(**changes):
    heads, codes = described(FLOAT32, 2, 3, 4, 8), described(INT8, 2, 5, 2, 8)
    scale = described(FLOAT32, 1, 1, 2, 8)
    tensors = {"q": heads, "k": codes, "v": codes, "k_scale": scale, "v_scale": scale, "out": heads}
    return check_described("fused_attention", struct.pack("qqfiii", 0, 0, 1, 0, 0, 0), **tensors | changes)


def attention_in_blocks(blocks, rows):
    codes = described(INT8, 7, rows, 2, 8)
    return attention(
        k=codes, v=codes, block_table=described(INT32, 2, blocks), kv_lengths=described(INT64, 2)
    )  # fmt: skip


def attention_of_long_heads(size):
    q, codes, scale = described(FLOAT32, 2, 3, 4, size), described(INT8, 2, 5, 2, size), described(FLOAT32, 1, 1, 2, 1)
    return attention(q=q, out=q, k=codes, v=codes, k_scale=scale, v_scale=scale)


def attention_of_sequences(batch):
    q, codes = described(FLOAT32, batch, 1, 2, 1), described(INT8, batch, 1, 2, 1)
    scale = described(FLOAT32, 1, 1, 2, 1)
    return attention(q=q, out=q, k=codes, v=codes, k_scale=scale, v_scale=scale)


def int4_heads(rows, strides):
    return described(INT4, 2, rows, 2, 8, strides=strides)


MOST = 2**16  # heads, and values of one


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (lambda: attention(k=int4_heads(5, (80, 16, 8, 1)), v=int4_heads(5, (80, 16, 8, 1))), None),
        (lambda: attention(k=int4_heads(5, (85, 17, 8, 1)), v=int4_heads(5, (80, 16, 8, 1))), "heads of int4 k must"),
        (lambda: attention(k=int4_heads(5, (80, 16, 8, 1)), v=int4_heads(5, (85, 17, 8, 1))), "heads of int4 v must"),
        (lambda: attention(k=int4_heads(1, (16, 17, 8, 1)), v=int4_heads(1, (16, 17, 8, 1))), None),  # of one row
        (lambda: attention_in_blocks(2**40, 2**21 - 1), None),
        (lambda: attention_in_blocks(2**40, 2**21), "block_table must be [B, blocks] with B = 2"),
        (lambda: attention_in_blocks(2**55, 2**9), "block_table must be [B, blocks] with B = 2"),  # the product is 0
        (lambda: attention(q=described(FLOAT32, 2, 3, MOST, 8), out=described(FLOAT32, 2, 3, MOST, 8)), None),
        (lambda: attention(q=described(FLOAT32, 2, 3, MOST + 2, 8)), "at most 65536 heads of at most as many values"),
        (lambda: attention(q=described(FLOAT32, 2, 3, 4, MOST + 1)), "at most 65536 heads of at most as many values"),
        (lambda: attention_of_long_heads(MOST), None),
        (lambda: attention_of_long_heads(MOST + 1), "at most 65536 heads of at most as many values"),
        (lambda: attention_of_sequences(2**31 - 1), None),
        (lambda: attention_of_sequences(2**31), "B must be at most 2147483647, got 2147483648"),
    ],
)
def test_limits_of_fused_attention(status, said):
    assert (status() == OK) == (said is None), sentence()
    assert said is None or said in sentence()


def cached_attention(rows=5, **changes):
    q, cache = described(FLOAT32, 2, 3, 4, 8), described(INT8, 2, rows, 2, 8)
    scale, lengths = described(FLOAT32, 2, 8), described(INT32, 2)
    tensors = {"q": q, "k_cache": cache, "v_cache": cache, "scale_k": scale, "scale_v": scale, "out": q}
    tensors |= {"lengths": lengths, **changes}
    return check_described("kv_cache_attention", struct.pack("fi", 1, 0), **tensors)


OF_256 = described(FLOAT32, 2, 4, 4, 8)


def with_heads(heads, size):
    q, cache, scale = described(FLOAT32, 2, 3, heads, size), described(INT8, 2, 5, 2, size), described(FLOAT32, 2, size)
    return cached_attention(q=q, out=q, k_cache=cache, v_cache=cache, scale_k=scale, scale_v=scale)


def with_single_values(step):
    q, scale = described(FLOAT32, 2, 3, 4, 1), described(FLOAT32, 2, 1)
    views = {name: described(INT8, 2, 5, 2, 1, strides=(10, 2, 1, step)) for name in ("k_cache", "v_cache")}
    return cached_attention(q=q, out=q, scale_k=scale, scale_v=scale, **views)


def with_strides(k_strides, v_strides, rows=5, size=8):
    k, v = (described(INT8, 2, rows, 2, size, strides=strides) for strides in (k_strides, v_strides))
    return cached_attention(k_cache=k, v_cache=v)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (cached_attention, None),
        (lambda: with_strides((160, 32, 16, 2), (160, 32, 16, 2)), "the last axis of k_cache should be contiguous"),
        (lambda: with_strides((80, 16, 8, 1), (160, 32, 8, 1)), "v_cache must have the strides of k_cache"),
        (lambda: with_strides((16, 99, 8, 1), (16, 77, 8, 1), rows=1), None),  # strides of one row
        (
            lambda: cached_attention(out=described(FLOAT32, 2, 3, 4, 8, strides=(0, 32, 8, 1))),
            "must not overlap itself",
        ),
        (
            lambda: cached_attention(out=described(FLOAT32, 2, 3, 4, 8, strides=(192, 64, 16, 2))),
            "the last axis of out should be contiguous",
        ),
        (lambda: with_heads(MOST, 8), None),
        (lambda: with_heads(MOST + 2, 8), "q must have at most 65536 heads of at most as many values"),
        (lambda: with_heads(4, MOST), None),
        (lambda: with_heads(4, MOST + 2), "q must have at most 65536 heads of at most as many values"),
        (lambda: with_single_values(7), None),
        (lambda: cached_attention(rows=2**46, q=OF_256, out=OF_256), None),
        (lambda: cached_attention(rows=2**46 + 1, q=OF_256, out=OF_256), "is too large for sequences of up to"),
        (lambda: cached_attention(rows=2**48), "is too large for sequences of up to"),
    ],
)
def test_limits_of_kv_cache_attention(status, said):
    assert (status() == OK) == (said is None), sentence()
    assert said is None or said in sentence()


def routing(tokens=2, width=4, chosen=1, experts=4, padded=0, expanded=None, **changes):
    x, slots = described(FLOAT32, tokens, width), tokens * chosen
    tensors = {
        "x": x,
        "expert_idx": described(INT32, tokens, chosen),
        "expanded_x": described(FLOAT32, *(expanded or (slots, width))),
        "expanded_row_idx": described(INT32, slots),
    }
    modes = (padded, 1, -1, 0)
    return check_described("moe_init_routing", struct.pack("3q4i", experts, 0, experts, *modes), **tensors | changes)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (routing, None),
        (lambda: routing(padded=1, expanded=(4, 2, 4)), None),
        (
            lambda: routing(padded=1, expanded=(8, 4)),
            "expanded_x must have shape (R, H) or, padded, (expert_num, C, H)",
        ),
        (lambda: routing(padded=1, expanded=(3, 2, 4)), "expanded_x must have shape (R, H) or, padded"),
        (lambda: routing(padded=1, expanded=(4, 2, 3)), "expanded_x must have shape (R, H) or, padded"),
        (lambda: routing(expanded=(1, 2, 4)), "expanded_x must have shape (R, H) or, padded"),
        (lambda: routing(expanded=(3, 4)), "expanded_x must have shape (R, H) or, padded"),
        (lambda: routing(expanded=(2, 3)), "expanded_x must have shape (R, H) or, padded"),
        (lambda: routing(tokens=2**31 - 1, width=0), None),
        (lambda: routing(tokens=2**30, chosen=2, width=0), "expert_idx has too many elements for int32"),
        (lambda: routing(experts=1, width=0, padded=1, expanded=(1, 2**31 - 1, 0)), None),
        (lambda: routing(width=0, padded=1, expanded=(4, 2**29, 0)), "expanded_x has too many rows for int32"),
        (lambda: routing(experts=2**20), None),
        (lambda: routing(experts=2**20 + 1), "expert_num must be at most 1048576 without expert_tokens"),
        (lambda: routing(experts=2**31 - 1, expert_tokens=described(INT64, 2**31 - 1)), None),
        (
            lambda: routing(experts=2**31, expert_tokens=described(INT64, 2**31)),
            "expert_num must be at least 1 and less",
        ),
        (lambda: routing(expert_tokens=described(INT64, 4, 1)), "expert_tokens has a wrong shape, (4, 1)"),
        (
            lambda: routing(expanded_row_idx=described(INT32, 2, 1)),
            "expanded_row_idx must have shape (N K,), got (2, 1)",
        ),
        (lambda: routing(expanded_scale=described(FLOAT32, 2)), None),
        (lambda: routing(expanded_scale=described(FLOAT32, 2, 1)), "expanded_scale must have a value for each row"),
    ],
)
def test_limits_of_moe_init_routing(status, said):
    assert (status() == OK) == (said is None), sentence()
    assert said is None or said in sentence()


def gating(experts):
    x, chosen = described(FLOAT32, 0, experts), described(FLOAT32, 0, 2)
    scalars = struct.pack("qqiiff", 1, 1, 0, 0, 1, 0)
    return check_described("moe_gating_topk", scalars, x=x, y=chosen, expert_idx=described(INT32, 0, 2))


def test_limits_of_moe_gating_topk():
    assert gating(2**31 - 1) == OK
    assert gating(2**31) == BAD_SHAPE
    assert "x has too many experts for int32" in sentence()


def weighted(m=3, k=64, n=16, **changes):
    tensors = {
        "x": described(FLOAT32, m, k),
        "weight": described(INT8, k, n),
        "scale": described(FLOAT32, n),
        "y": described(FLOAT32, m, n),
    }
    return check_described("weight_quant_matmul", struct.pack("q2i", 0, 0, 0), **tensors | changes)


def prepacked_bytes(k, n):
    return anynpu.weight_quant_prepack(torch.zeros(k, n, dtype=torch.int8)).numel()


def prepacked(m=3, k=64, n=16, **view):
    size = prepacked_bytes(64, 16)
    return weighted(m, k, n, weight=described(UINT8, *view.pop("shape", (size,)), **view))


LONGEST = 2**40  # of M, K and N


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (weighted, None),
        (lambda: weighted(m=LONGEST, k=1, n=1), None),
        (lambda: weighted(m=LONGEST + 1, k=1, n=1), "M must be at most 2^40"),
        (lambda: weighted(m=1, k=LONGEST, n=1), None),
        (lambda: weighted(m=1, k=LONGEST + 1, n=1), "axes of weight must be at most 2^40"),
        (lambda: weighted(m=1, k=1, n=LONGEST), None),
        (lambda: weighted(m=1, k=1, n=LONGEST + 1), "axes of weight must be at most 2^40"),
        (prepacked, None),
        (lambda: prepacked(strides=(2,)), "a prepacked (uint8) weight must be contiguous with one axis"),
        (lambda: prepacked(format=NZ), "a prepacked (uint8) weight must be contiguous with one axis"),
        (lambda: prepacked(shape=(2, 1024)), "a prepacked (uint8) weight must be contiguous with one axis"),
        (lambda: prepacked(n=65), "prepacked weight for K 64 and N 65 must have"),
        (lambda: prepacked(k=1, n=LONGEST), f"prepacked weight for K 1 and N {LONGEST} must have"),
        (lambda: prepacked(k=1, n=LONGEST + 1), "are too large"),
        (lambda: prepacked(m=1, k=LONGEST, n=1), f"prepacked weight for K {LONGEST} and N 1 must have"),
        (lambda: prepacked(m=1, k=LONGEST + 1, n=1), "are too large"),
        (lambda: prepacked(m=1, k=LONGEST, n=0), f"prepacked weight for K {LONGEST} and N 0 must have"),
        (lambda: prepacked(m=1, k=2**30, n=2**28), f"prepacked weight for K {2**30} and N {2**28} must have"),
        (lambda: prepacked(m=1, k=2**30 + 1, n=2**28), "are too large"),
    ],
)
def test_limits_of_weight_quant_matmul(status, said):
    assert (status() == OK) == (said is None), sentence()
    assert said is None or said in sentence()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_absent_is_not_looked_at(monkeypatch, name):
    garbage = TENSOR.pack(1, 77, 0, 9, 7, *[-1] * 16)
    for function, views, rest in valid_structs(monkeypatch, name):
        tensors = [TENSOR.pack(*each) if each[2] else garbage for each in views]
        assert check(function, b"".join(tensors) + rest) == OK, sentence()
