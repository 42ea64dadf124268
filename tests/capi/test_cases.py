# SPDX-License-Identifier: Apache-2.0
"""The case tables of the Python front end, through the two stages of the C one."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from types import SimpleNamespace

import c_front_end
import case_table
import pytest
import torch
from c_cases import strict_lines
from c_front_end import INT4, DeviceTensor, Outcome, Session

import anynpu
from anynpu import _native
from anynpu.ops.rope_kv_cache.spec import sample_arguments

OPERATORS = ("int4_pack", "weight_quant_matmul", "cast", "trans_quant_param", "quantize", "anti_quant", "rope_kv_cache")
# dtype, sharedInputWeight, sharedInputOffset, transposeX, transposeW, groupListType
ROUTING = [ctypes.c_int64(0), ctypes.c_float(1), *(3 * [ctypes.c_int64(0)]), ctypes.c_int64(1)]
TRANSPOSES = 2 * [ctypes.c_bool(False)]
QUANT_MATMUL = [*"tttt", None, None, "t", None, "t", *TRANSPOSES, ctypes.c_int64(0)]
# activeNum, expertCapacity, expertNum, dropPadMode, the kind of counts, whether they are wanted
V2_SWIGLU = [
    ctypes.c_bool(False), ctypes.c_char_p(b"static"), ctypes.c_int64(2), None, ctypes.c_int64(-1), ctypes.c_int64(0),
    *map(ctypes.c_double, (7.0, 1.702, 1.0)),
]  # fmt: skip
V2_ROUTING = [*(ctypes.c_int64(value) for value in (0, 0, 1, 0, 1)), ctypes.c_bool(True)]
V3_ROUTING = [*V2_ROUTING, ctypes.c_int64(-1), None, ctypes.c_int64(0)]
QUANTIZED = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32, torch.quint4x2: torch.int32}

# What an adapter returns: the outcome, and each output beside the shape and dtype that it has.
Outputs = list[tuple[DeviceTensor, list[int], torch.dtype]]


def is_nz(case, name: str) -> bool:
    return case.spec["args"].get(name, {}).get("format") == "NZ"


def int4_pack(case, make: Session) -> tuple[Outcome, Outputs]:
    weight, nz = case.args["weight"], is_nz(case, "weight")
    shape = [*weight.shape[:-1], weight.shape[-1] // 8]
    packed = make.output(shape, torch.int32, nz=nz)
    shape = list(anynpu.nd_to_nz(torch.zeros(shape, dtype=torch.int32)).shape) if nz else shape
    outcome = c_front_end.call("aclnnConvertWeightToINT4Pack", make.tensor(weight, nz), packed.handle)
    return outcome, [(packed, shape, torch.int32)]


def matmul_shape(args: dict) -> list[int]:
    x, weight = args["x"], args["weight"]
    n = args.get("n") or weight.shape[-1]
    packed_along_n = weight.dtype == torch.int32 and weight.dim() > 1 and weight.shape[-2] == x.shape[-1]
    return [*x.shape[:-1], n * 8 if packed_along_n else n]


def weight_quant_matmul(case, make: Session) -> tuple[Outcome, Outputs]:
    args = case.args
    dtype = torch.int8 if args.get("quant_scale") is not None else args["x"].dtype
    shape = list(expected(case)[0].shape) if case.error is None else matmul_shape(args)
    y = make.output(shape, dtype)
    precise = args.get("inner_precise")
    names = ("scale", "offset", "quant_scale", "quant_offset", "bias")
    outcome = c_front_end.call(
        "aclnnWeightQuantBatchMatmulV2" if precise is None else "aclnnWeightQuantBatchMatmulV3",
        make.tensor(args["x"]),
        make.tensor(args["weight"], is_nz(case, "weight")),
        *(make.tensor(args.get(name)) for name in names),
        ctypes.c_int(args.get("group_size", 0)),
        *(() if precise is None else (ctypes.c_int(precise),)),
        y.handle,
    )
    return outcome, [(y, shape, dtype)]


def cast(case, make: Session) -> tuple[Outcome, Outputs]:
    x, dtype = case.args["x"], case.args["dtype"]
    out = make.output(list(x.shape), dtype)
    outcome = c_front_end.call("aclnnCast", make.tensor(x), ctypes.c_int(_native.DTYPE_CODES[dtype]), out.handle)
    return outcome, [(out, list(x.shape), dtype)]


def trans_quant_param(case, make: Session) -> tuple[Outcome, Outputs]:
    scale, offset, mode = (case.args.get(name) for name in ("scale", "offset", "round_mode"))
    shape = list(scale.shape) if offset is None or scale.shape[-1:] != (1,) else list(offset.shape)
    out = make.output(shape, torch.int64)
    outcome = c_front_end.call(
        "aclnnTransQuantParamV2" if mode is None else "aclnnTransQuantParamV3",
        make.tensor(scale),
        make.tensor(offset),
        *(() if mode is None else (ctypes.c_int64(mode),)),
        out.handle,
    )
    return outcome, [(out, shape, torch.int64)]


def quantize(case, make: Session) -> tuple[Outcome, Outputs]:
    args = case.args
    x, dtype = args["x"], QUANTIZED.get(args["dtype"], args["dtype"])
    shape = [*x.shape[:-1], x.shape[-1] // 8] if args["dtype"] == torch.quint4x2 else list(x.shape)
    out = make.output(shape, dtype)
    tensors = [make.tensor(args.get(name)) for name in ("x", "scales", "zero_points")]
    code, axis = ctypes.c_int(_native.DTYPE_CODES[dtype]), ctypes.c_int(args.get("axis", 1))
    if args.get("div_mode", True):
        outcome = c_front_end.call("aclnnQuantize", *tensors, code, axis, out.handle)
    else:
        flags = (ctypes.c_bool(False), ctypes.c_char_p(b"round"))
        outcome = c_front_end.call("aclnnAscendQuantV3", *tensors, *flags, code, axis, out.handle)
    return outcome, [(out, shape, dtype)]


def anti_quant(case, make: Session) -> tuple[Outcome, Outputs]:
    x, dtype = case.args["x"], case.args.get("dtype", torch.float16)
    shape = [*x.shape[:-1], x.shape[-1] * (8 if x.dtype == torch.int32 else 1)]
    out = make.output(shape, dtype)
    tensors = [make.tensor(case.args.get(name)) for name in ("x", "scale", "offset")]
    code = ctypes.c_int64(_native.DTYPE_CODES[dtype])
    outcome = c_front_end.call("aclnnAscendAntiQuant", *tensors, code, ctypes.c_bool(False), out.handle)
    return outcome, [(out, shape, dtype)]


def rope_kv_cache(case, make: Session) -> tuple[Outcome, Outputs]:
    args = case.args
    if "quant_mode" in args:
        pytest.skip("quant_mode is a word in C, not a number")
    x, cos, splits = args["x"], args["cos"], args["size_splits"]
    dtype = cos.dtype if cos.is_floating_point() else torch.float32
    head = max(1, args["k_cache"].shape[-1])
    shapes = [[*x.shape[:-1], size // head, head] for size in splits]
    outputs: Outputs = [(make.output(shape, dtype), shape, dtype) for shape in shapes]
    caches: Outputs = []
    for name in ("k_cache", "v_cache"):
        handle = make.tensor(args[name])
        caches.append((make.find(handle), list(args[name].shape), args[name].dtype))
    kv_output = bool(args.get("kv_output", False))
    outcome = c_front_end.call(
        "aclnnDequantRopeQuantKvcache",
        *(make.tensor(args[name]) for name in ("x", "cos", "sin")),
        *(cache.handle for cache, _, _ in caches),
        *(make.tensor(args[name]) for name in ("indices", "scale_k", "scale_v")),
        *(make.tensor(args.get(n)) for n in ("offset_k", "offset_v", "weight_scale", "activation_scale", "bias")),
        make.ints(splits),
        ctypes.c_char_p(b"static"),
        ctypes.c_char_p(args.get("input_layout", "BSND").encode()),
        ctypes.c_bool(kv_output),
        ctypes.c_char_p(args.get("cache_mode", "contiguous").encode()),
        *(output.handle for output, _, _ in outputs),
    )
    return outcome, [outputs[0], *(outputs[1:] if kv_output else []), *caches]


ADAPTERS: dict[str, Callable] = {name: globals()[name] for name in OPERATORS}


def expected(case) -> list[torch.Tensor]:
    """What the Python front end returns for the same call, on copies."""
    args = {key: value.clone() if key in ("k_cache", "v_cache") else value for key, value in case.args.items()}
    if case.operator == "quantize":
        args.setdefault("zero_points", None)
    result = getattr(anynpu, case.operator)(**args)
    results = list(result) if isinstance(result, tuple) else [result]
    if case.operator == "int4_pack" and is_nz(case, "weight"):
        return [anynpu.nd_to_nz(results[0])]
    if case.operator == "rope_kv_cache" and not args.get("kv_output", False):
        del results[1:3]
    return results


class OperatorCase:
    """A case that knows its operator."""

    def __init__(self, operator: str, case: case_table.Case) -> None:
        self.operator = operator
        self.name, self.args, self.error, self.spec = case.name, case.args, case.error, case.spec


def cases(valid: bool) -> list:
    return [
        pytest.param(OperatorCase(operator, case), id=f"{operator}-{case.name}")
        for operator in OPERATORS
        for case in case_table.load(operator, "c")
        if (case.error is None) == valid
    ]


@pytest.mark.parametrize("case", cases(valid=True))
def test_valid_call_equals_the_python_front_end(case):
    with c_front_end.session() as make:
        outcome, outputs = ADAPTERS[case.operator](case, make)
        assert outcome.status == 0, outcome
        results = [output.tensor(shape, dtype) for output, shape, dtype in outputs]
    wanted = expected(case)
    assert len(results) == len(wanted)
    for result, want in zip(results, wanted, strict=True):
        assert result.dtype == want.dtype
        torch.testing.assert_close(result, want.contiguous(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", cases(valid=False))
def test_invalid_call_gives_its_status_and_leaves_outputs_untouched(case):
    with c_front_end.session() as make:
        outcome, outputs = ADAPTERS[case.operator](case, make)
        assert outcome.status == case.error["status"], outcome
        assert re.search(case.error["match"], outcome.sentence), outcome
        for output, _, _ in outputs:
            assert output.is_untouched()


def test_int4_tensors_hold_the_same_bytes_as_int32_words():
    values = torch.randint(-8, 8, (32, 48), dtype=torch.int32)
    x, scale = torch.randn(5, 32, dtype=torch.float16), torch.rand(48, dtype=torch.float16)
    words = anynpu.int4_pack(values)
    with c_front_end.session() as make:
        packed = make.output(list(words.shape), torch.int32, code=INT4)
        assert c_front_end.call("aclnnConvertWeightToINT4Pack", make.tensor(values), packed.handle).status == 0
        assert torch.equal(packed.tensor(list(words.shape), torch.int32), words)
        y = make.output([5, 48], torch.float16)
        none = [None] * 4
        outcome = c_front_end.call(
            "aclnnWeightQuantBatchMatmulV2",
            make.tensor(x),
            packed.handle,
            make.tensor(scale),
            *none,
            ctypes.c_int(0),
            y.handle,
        )
        assert outcome.status == 0, outcome
        assert torch.equal(y.tensor([5, 48], torch.float16), anynpu.weight_quant_matmul(x, words, scale))


@pytest.mark.parametrize(
    "function, arguments, required",
    [
        ("aclnnConvertWeightToINT4Pack", ["t", "t"], [0, 1]),
        ("aclnnCast", ["t", ctypes.c_int(0), "t"], [0, 2]),
        ("aclnnTransQuantParamV2", ["t", "t", "t"], [0, 2]),
        ("aclnnTransQuantParamV3", ["t", "t", ctypes.c_int64(0), "t"], [0, 3]),
        ("aclnnQuantize", ["t", "t", "t", ctypes.c_int(0), ctypes.c_int(0), "t"], [0, 1, 5]),
        ("aclnnAscendQuant", ["t", "t", "t", ctypes.c_bool(False), None, ctypes.c_int(0), "t"], [0, 1, 6]),
        ("aclnnWeightQuantBatchMatmulV2", [*"tttttttt"[:7], ctypes.c_int(0), "t"], [0, 1, 2, 8]),
        ("aclnnWeightQuantBatchMatmulV3", [*"ttttttt", ctypes.c_int(0), ctypes.c_int(0), "t"], [0, 1, 2, 9]),
        ("aclnnAscendAntiQuant", ["t", "t", None, ctypes.c_int64(1), ctypes.c_bool(False), "t"], [0, 1, 5]),
        ("aclnnDynamicQuant", [*"tttt"], [0, 2, 3]),
        ("aclnnDynamicQuantV2", [*"ttt", ctypes.c_int64(2), "t", "t", None], [0, 4, 5]),
        (
            "aclnnDequantSwigluQuant",
            [*"ttttttt", ctypes.c_bool(False), ctypes.c_char_p(b"static"), "t", "t"],
            [0, 9, 10],
        ),
        ("aclnnDequantSwigluQuantV2", [*"ttttttt", *V2_SWIGLU, "t", "t"], [0, 16, 17]),
        ("aclnnMoeInitRoutingV2", ["t", "t", *V2_ROUTING, *"tttt"], [0, 1, 8, 9, 10]),
        ("aclnnMoeInitRoutingV3", ["t", "t", None, None, *V3_ROUTING, *"tttt"], [0, 1, 13, 14, 15, 16]),
        ("aclnnQuantMatmulV3", [*"ttttt", *TRANSPOSES, "t"], [0, 1, 2, 7]),
        ("aclnnQuantMatmulV4", [*"tttttt", *TRANSPOSES, "t"], [0, 1, 2, 8]),
        ("aclnnQuantMatmulV5", [*QUANT_MATMUL, "t"], [0, 1, 3, 12]),
        ("aclnnQuantMatmulWeightNz", [*QUANT_MATMUL, "t"], [0, 1, 3, 12]),
        ("aclnnGroupedMatmulFinalizeRouting", [*"ttttttttt", *ROUTING, "t"], [0, 1, 2, 5, 8, 15]),
        ("aclnnGroupedMatmulFinalizeRoutingWeightNz", [*"ttttttttt", *ROUTING, "t"], [0, 1, 2, 5, 8, 15]),
        ("aclnnGroupedMatmulFinalizeRoutingV2", [*"tttttttttttt", *ROUTING, "t"], [0, 1, 2, 8, 11, 18]),
        ("aclnnGroupedMatmulFinalizeRoutingV3", [*"tttttttttttt", *ROUTING, None, "t"], [0, 1, 2, 8, 11, 19]),
    ],
)
def test_null_in_every_required_position(function, arguments, required):
    with c_front_end.session() as make:
        for position in required:
            handles = [
                (None if at == position else make.tensor(torch.zeros(8))) if value == "t" else value
                for at, value in enumerate(arguments)
            ]
            assert c_front_end.call(function, *handles).status == 161001, (function, position)


def test_int4_tensors_of_anti_quant_hold_the_same_bytes_as_int32_words():
    words, scale = anynpu.int4_pack(torch.randint(-8, 8, (5, 24), dtype=torch.int32)), torch.rand(24)
    with c_front_end.session() as make:
        out = make.output([5, 24], torch.float16)
        tensors = [make.tensor(words, code=INT4), make.tensor(scale), None]
        outcome = c_front_end.call(
            "aclnnAscendAntiQuant", *tensors, ctypes.c_int64(1), ctypes.c_bool(False), out.handle
        )
        assert outcome.status == 0, outcome
        assert torch.equal(out.tensor([5, 24], torch.float16), anynpu.anti_quant(words, scale))
        for options, text in (((1, True), "sqrtMode is not"), ((27, False), "dstType is 27, but y has dtype float16")):
            values = ctypes.c_int64(options[0]), ctypes.c_bool(options[1])
            outcome = c_front_end.call("aclnnAscendAntiQuant", *tensors, *values, out.handle)
            assert outcome.status == 161002 and text in outcome.sentence, outcome


@pytest.mark.parametrize("words", [torch.int64, torch.uint64])
def test_weight_quant_matmul_takes_the_words_of_trans_quant_param(words):
    """The first stages of aclnnTransQuantParamV2 and V3 write either type."""
    x, weight = torch.ones(2, 64).half(), torch.ones(64, 8, dtype=torch.int8)
    scale, quant_scale = (anynpu.trans_quant_param(torch.tensor([value])).view(words) for value in (0.25, 0.5))
    make = Session()
    try:
        y = make.output([2, 8], torch.int8)
        tensors = [make.tensor(each) for each in (x, weight, scale, None, quant_scale, None, None)]
        outcome = c_front_end.call("aclnnWeightQuantBatchMatmulV2", *tensors, ctypes.c_int(0), y.handle)
        assert outcome.status == 0, outcome.message
        assert y.tensor([2, 8], torch.int8).eq(64 * 0.25 * 0.5).all()
    finally:
        make.close()


ROPE_SIZES = {
    "leading": (2, 1), "heads": (2, 1), "head_size": 64, "dtype": torch.int32, "cos_dtype": torch.float16,
    "cache": (3, 8), "indices": [0, 1],
}  # fmt: skip
FLOAT32 = {"dtype": torch.float32, "cos_dtype": torch.float32}
# The rule, other sizes, other arguments.
BEYOND = [
    ("the last axis of x to be at most 4096 and a multiple of 64, got 520", {"head_size": 130}, {}),
    ("the last axis of x to be at most 4096 and a multiple of 64, got 4352", {"heads": (66, 1)}, {}),
    ("cos in float16 or bfloat16, got float32", FLOAT32, {}),
    ("kCacheRef.shape[0] > B = 2 in contiguous mode, got 2", {"cache": (2, 8)}, {}),
    *(
        ("2-D scales and offsets, got 1 axes", {}, {name: torch.ones(64)})
        for name in ("scale_k", "scale_v", "offset_k", "offset_v")
    ),
    ("2 elements of activationScale, got 3", {}, {"activation_scale": torch.ones(3)}),
    ("256 elements of bias, got 257", {}, {"bias": torch.ones(257)}),
]


def rope_outcome(sizes, arguments):
    args = sample_arguments(**(ROPE_SIZES | sizes))
    args |= {"weight_scale": torch.ones(args["x"].shape[-1]), **arguments}
    with c_front_end.session() as make:
        return rope_kv_cache(SimpleNamespace(args=args), make)[0]


def within():
    """What the chip has: exact sizes, and in page mode as many planes as sequences."""
    exact = {"activation_scale": torch.ones(2), "bias": torch.ones(256), "offset_k": torch.ones(1, 64)}
    return [rope_outcome({}, exact), rope_outcome({"cache": (2, 8)}, {"cache_mode": "page"})]


def beyond():
    return [*within(), *(rope_outcome(sizes, arguments) for _, sizes, arguments in BEYOND)]


def test_limits_of_rope_kv_cache_in_strict_mode():
    assert all(outcome.status == 0 for outcome in beyond())
    good, also_good, *lines = strict_lines("Ascend910B", "test_cases")
    assert (good.strip(), also_good.strip()) == ("0", "0")
    for line, (rule, _, _) in zip(lines, BEYOND, strict=True):
        assert line.startswith("161002 "), line
        assert f"Ascend910B (Atlas A2) wants {rule}" in line


def test_atlas_a3_lacks_rope_kv_cache_in_strict_mode():
    for line in strict_lines("Ascend910_9391", "test_cases"):
        assert line.startswith("161002 "), line
        assert "(Atlas A3) lacks this operator, which the document gives to Atlas A2 alone" in line
