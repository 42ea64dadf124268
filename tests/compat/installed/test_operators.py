# SPDX-License-Identifier: Apache-2.0
"""The functions of torch_npu: published names and errors over the operators of anynpu."""

from __future__ import annotations

import builtins
import functools

import case_table
import pytest
import torch
import torch_npu
from npu_tensors import codes, halves, nibbles, reals

import anynpu

# Table and torch_npu function of each operator; the argument names of the function by those of the table.
FUNCTIONS = {
    "int4_pack": ("npu_convert_weight_to_int4pack", {"weight": "weight"}),
    "weight_quant_matmul": (
        "npu_weight_quant_batchmatmul",
        {
            "x": "x",
            "weight": "weight",
            "scale": "antiquant_scale",
            "offset": "antiquant_offset",
            "quant_scale": "quant_scale",
            "quant_offset": "quant_offset",
            "bias": "bias",
            "group_size": "antiquant_group_size",
            "inner_precise": "inner_precise",
        },
    ),
    "quant_matmul": (
        "npu_quant_matmul",
        {name: name for name in ("x1", "x2", "scale", "offset", "pertoken_scale", "bias", "output_dtype")},
    ),
    "grouped_matmul": (
        "npu_grouped_matmul",
        {
            **{name: name for name in ("x", "weight", "bias", "scale", "antiquant_scale", "antiquant_offset")},
            **{name: name for name in ("per_token_scale", "group_list", "split_item", "group_type")},
            **{name: name for name in ("group_list_type", "output_dtype")},
        },
    ),
    "grouped_matmul_combine": (
        "npu_grouped_matmul_finalize_routing",
        {
            **{name: name for name in ("x", "scale", "group_list", "row_index", "bias", "offset", "pertoken_scale")},
            **{name: name for name in ("logit", "shared_input", "shared_input_weight", "shared_input_offset")},
            **{name: name for name in ("output_bs", "group_list_type")},
            "weight": "w",
        },
    ),
    "dynamic_quant": (
        "npu_dynamic_quant",
        {
            "x": "input",
            "smooth_scales": "smooth_scales",
            "group_index": "group_index",
            "quant_mode": "quant_mode",
        },
    ),
    "anti_quant": (
        "npu_anti_quant",
        {"x": "x", "scale": "scale", "offset": "offset", "dtype": "dst_dtype"},
    ),
    "trans_quant_param": (
        "npu_trans_quant_param",
        {"scale": "scale", "offset": "offset", "round_mode": "round_mode"},
    ),
    "quantize": (
        "npu_quantize",
        {
            "x": "input",
            "scales": "scales",
            "zero_points": "zero_points",
            "dtype": "dtype",
            "axis": "axis",
            "div_mode": "div_mode",
        },
    ),
}

TAKEN = {"grouped_matmul": {"int4 scale of two axes"}}  # test_grouped_operators.py has it


def rows(valid):
    return [
        pytest.param(operator, case, id=f"{operator}: {case.name}")
        for operator, (_, names) in FUNCTIONS.items()
        for case in case_table.load(operator)
        if (case.error is None) == valid
        and case.args.keys() <= names.keys()
        and case.name not in TAKEN.get(operator, ())
    ]


def keywords(operator, case):
    arguments = {FUNCTIONS[operator][1][name]: value for name, value in case.args.items()}
    if operator == "quantize":
        arguments.setdefault("zero_points", None)
    for name, tensor in case.spec["args"].items():
        if isinstance(tensor, dict) and tensor.get("format") == "NZ":
            published = FUNCTIONS[operator][1][name]
            arguments[published] = torch_npu.npu_format_cast(arguments[published], 29)
    return arguments


@pytest.mark.parametrize("operator, case", rows(valid=True))
def test_equals_the_operator(operator, case):
    arguments = keywords(operator, case)
    result = getattr(torch_npu, FUNCTIONS[operator][0])(**arguments)
    defaults = {"zero_points": None} if operator == "quantize" else {}
    expected = getattr(anynpu, operator)(**{**defaults, **case.args})
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("operator, case", rows(valid=False))
def test_errors_keep_both_shapes(operator, case):
    function = getattr(torch_npu, FUNCTIONS[operator][0])
    with pytest.raises(RuntimeError, match=case.error["match"]) as caught:  # what users of torch_npu catch
        function(**keywords(operator, case))
    assert isinstance(caught.value, getattr(builtins, case.error["python"]))
    assert f"error code is {case.error.get('status', 161002)} " in str(caught.value)
    assert f"[ERROR] {function.__name__}: call aclnn" in str(caught.value)


def test_published_error_texts_of_the_packer():
    pack = torch_npu.npu_convert_weight_to_int4pack
    for weight, text in (
        (nibbles(16, 8).t(), "weight should be contiguous"),
        (nibbles(8), "weight shape only support dim num 2/3, but it is 1"),
        (nibbles(8, 8).to(torch.int8), "weight dtype only support int32 and float32, but it is int8"),
        (nibbles(0, 8), "weight dim should be greater than 0"),
        (nibbles(8, 12), "weight last dim should be the multiple of 8, but it is 12"),
    ):
        with pytest.raises(RuntimeError, match=text):
            pack(weight)
    with pytest.raises(TypeError, match=r"weight must be a tensor, got NoneType(.|\n)*error code is 161001"):
        pack(None)
    with pytest.raises(TypeError, match=r"weight must be a tensor, got list(.|\n)*error code is 161002"):
        pack([[1]])
    with pytest.raises(TypeError, match="antiquant_scale must be a tensor, got NoneType"):
        torch_npu.npu_weight_quant_batchmatmul(halves(2, 64), nibbles(64, 4), None)


def test_arguments_of_another_kind_are_named_and_not_printed():
    matmul, x, weight, scale = torch_npu.npu_weight_quant_batchmatmul, halves(2, 64), codes(64, 8), halves(8)
    for call, text in (
        (lambda: matmul(x.numpy(), weight, scale), "x must be a tensor, got ndarray"),
        (lambda: matmul(x, weight, scale, bias=1), "bias must be a tensor or None, got int"),
        (lambda: matmul(x, weight, scale, antiquant_group_size=32.0), "antiquant_group_size must be an int, got float"),
        (lambda: torch_npu.npu_grouped_matmul([None], [weight]), "x must be a list of tensors, got list of NoneType"),
        (lambda: torch_npu.npu_quantize(x, scale, None, "qint8"), "dtype must be an int or torch dtype, got str"),
        (lambda: torch_npu.npu_format_cast(x, None), "acl_format must be an int, got NoneType"),
        (lambda: torch_npu.get_npu_format(None), "self must be a tensor, got NoneType"),
    ):
        with pytest.raises(TypeError, match=text) as refused:
            call()
        assert len(str(refused.value)) < 250


def bias(n):
    return torch.arange(n, dtype=torch.int32)


def words(scale):
    return scale.view(torch.int32).long()


def compressed(n, k):
    weight = anynpu.formats.compress_weight(codes(n, k, seed=1))
    return weight.stream, weight.index


def call(name):
    """A small valid call of each operator of torch.ops.npu."""
    packed = anynpu.int4_pack(nibbles(64, 32))
    scales = reals(2, 32, dtype=torch.float32).abs()
    return {
        "npu_convert_weight_to_int4pack": (nibbles(16, 24), 0),
        "npu_weight_quant_batchmatmul": (halves(3, 64), packed, scales.half(), None, None, None, None, 32),
        "npu_trans_quant_param": (scales[0], scales[1]),
        "npu_anti_quant": (packed, scales[0]),
        "npu_quant_matmul": (codes(3, 64), codes(64, 32), scales[0]),
        "npu_dynamic_quant": (halves(3, 64),),
        "npu_matmul_compress_dequant": (codes(3, 64), *compressed(32, 64), bias(32), words(scales[:1])),
        "npu_quantize": (halves(3, 32), scales[0], None, torch.qint8, -1, False),
        "npu_format_cast": (halves(16, 32), 29),
    }[name]


OPERATORS = [
    "npu_convert_weight_to_int4pack",
    "npu_weight_quant_batchmatmul",
    "npu_trans_quant_param",
    "npu_anti_quant",
    "npu_quantize",
    "npu_format_cast",
    "npu_quant_matmul",
    "npu_dynamic_quant",
    "npu_matmul_compress_dequant",
]


@pytest.mark.parametrize("name", OPERATORS)
def test_is_an_operator_of_torch(name):
    operator, function = getattr(torch.ops.npu, name), getattr(torch_npu, name)
    torch.testing.assert_close(operator(*call(name)), function(*call(name)), rtol=0, atol=0)
    torch.library.opcheck(operator.default, call(name))


def test_groups_of_quant_matmul():
    x, words = codes(5, 512).npu(), torch_npu.npu_convert_weight_to_int4pack(nibbles(512, 32).npu())
    scale = torch.stack([torch_npu.npu_trans_quant_param(reals(32, dtype=torch.float32, seed=i)) for i in range(2)])
    options = {"offset": reals(32, dtype=torch.float32), "pertoken_scale": torch.rand(5, 1)}
    result = torch_npu.npu_quant_matmul(
        x, words, scale, **options, output_dtype=torch.bfloat16, group_sizes=[0, 0, 256]
    )
    expected = anynpu.quant_matmul(x, words, scale, **options, output_dtype=torch.bfloat16, group_size=256)
    assert torch.equal(result, expected)
    with pytest.raises(NotImplementedError, match=r"group_sizes must be \[0, 0, group_k\], .* got \[1, 128, 128\]"):
        torch_npu.npu_quant_matmul(x, words, scale, group_sizes=[1, 128, 128])


def in_float16(name):
    """A function that multiplies matrices, and arguments."""
    x, weights = halves(5, 16), halves(2, 16, 16, seed=1)
    groups = {"group_list": torch.tensor([2, 5]), "group_type": 0, "split_item": 3}
    calls = {
        "npu_grouped_matmul": lambda: torch_npu.npu_grouped_matmul([x], [weights], **groups)[0],
        "npu_ffn": lambda: torch_npu.npu_ffn(x, weights[0], weights[1], "silu"),
        "npu_kronecker_quant": lambda: torch_npu.npu_kronecker_quant(x.view(5, 1, 16), x[:1, :1], weights[0])[1],
        "npu_linear": lambda: torch_npu.npu_linear(x, weights[0]),
    }
    return calls[name]


PRODUCTS = pytest.mark.parametrize("name", ["npu_grouped_matmul", "npu_ffn", "npu_kronecker_quant", "npu_linear"])


@PRODUCTS
def test_autocast_does_not_round_what_functions_compute(name):
    call = in_float16(name)
    expected = call()
    with torch.autocast("npu", dtype=torch.bfloat16):
        result = call()
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)


def test_vmap():
    x, plain, scale = halves(3, 2, 64), codes(64, 32), halves(32, seed=1).abs()
    for weight in (plain, torch_npu.npu_format_cast(plain, torch_npu.Format.FRACTAL_NZ)):
        function = functools.partial(torch_npu.npu_weight_quant_batchmatmul, weight=weight, antiquant_scale=scale)
        assert torch.equal(torch.vmap(function)(x), torch.stack([function(rows) for rows in x]))
    packed = torch.vmap(torch_npu.npu_convert_weight_to_int4pack)(nibbles(2, 8, 16))
    assert torch.equal(packed[1], torch_npu.npu_convert_weight_to_int4pack(nibbles(2, 8, 16)[1]))


def test_compressed_matmul_takes_the_documented_dtypes():
    packed = anynpu.formats.compress_weight(codes(8, 64))
    with pytest.raises(TypeError, match="npu_matmul_compress_dequant: scale must be int64 or uint64, got float32"):
        torch_npu.npu_matmul_compress_dequant(codes(3, 64), packed.stream, packed.index, bias(8), torch.ones(1, 8))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", OPERATORS)
def test_graph_capture(name, backend):
    function = getattr(torch_npu, name)
    torch.compiler.reset()
    compiled = torch.compile(lambda *args: function(*args), backend=backend, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(*call(name)), function(*call(name)), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_graph_capture_decides_the_layout_by_strides(backend):
    def model(x, weight, scale, group_size):
        return torch_npu.npu_weight_quant_batchmatmul(
            x, weight.transpose(-1, -2), scale.transpose(-1, -2), antiquant_group_size=group_size
        )

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for m, n in ((3, 16), (5, 40)):
        values, scale = nibbles(n, 64, seed=n), halves(n, 2).abs()
        weight = torch_npu.npu_convert_weight_to_int4pack(values.npu())
        expected = model(halves(m, 64), weight, scale, 32)
        assert torch.equal(compiled(halves(m, 64), weight, scale, 32), expected)
        real = halves(m, 64).double() @ (values.t().double() * scale.t().double().repeat_interleave(32, 0))
        torch.testing.assert_close(expected.double(), real, rtol=2**-10, atol=2**-10)


def test_errors_in_a_graph_name_the_rule():
    torch.compiler.reset()
    compiled = torch.compile(torch_npu.npu_convert_weight_to_int4pack, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="weight last dim should be the multiple of 8, but it is 12"):
        compiled(nibbles(4, 12))


def test_quantize_takes_published_dtype_numbers():
    x, scale = reals(4, 16, dtype=torch.float32), torch.full((16,), 0.1)
    for number, dtype in ((1, torch.int8), (12, torch.qint8), (13, torch.quint8), (3, torch.int32)):
        assert torch.equal(torch_npu.npu_quantize(x, scale, None, number), anynpu.quantize(x, scale, None, dtype))
        assert torch.equal(torch.ops.npu.npu_quantize(x, scale, None, dtype), anynpu.quantize(x, scale, None, dtype))
    with pytest.raises(NotImplementedError, match="dtype 290 is a dtype that anynpu does not implement"):
        torch_npu.npu_quantize(x, scale, None, 290)


def test_quantize_is_captured_with_its_arguments_by_name():
    x, scale = reals(4, 16, dtype=torch.float32), torch.full((16,), 0.1)

    def quantize(x, scale):
        return torch_npu.npu_quantize(input=x, scales=scale, zero_points=None, dtype=torch.qint8)

    compiled = torch.compile(quantize, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, scale), quantize(x, scale))


def test_anti_quant_checks_the_source_dtype():
    packed, codes, scale = anynpu.int4_pack(nibbles(4, 16)), torch.ones(4, 16, dtype=torch.int8), torch.ones(16)
    for x, dtypes in ((packed, (torch_npu.int4, torch.quint4x2, 16)), (codes, (torch.int8, 1))):
        for dtype in dtypes:
            result = torch_npu.npu_anti_quant(x, scale, dst_dtype=torch.bfloat16, src_dtype=dtype)
            assert torch.equal(result, anynpu.anti_quant(x, scale, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="The datatype of x is int32, src_dtype must be int4"):
        torch_npu.npu_anti_quant(packed, scale, src_dtype=torch.int8)
    with pytest.raises(RuntimeError, match="The datatype of x must match src_dtype"):
        torch_npu.npu_anti_quant(codes, scale, src_dtype=torch_npu.int4)


def test_a_name_that_is_missing_says_what_is_there():
    with pytest.raises(
        AttributeError, match="torch_npu.npu_quantise is not implemented by anynpu. Close matches: npu_q"
    ):
        torch_npu.npu_quantise  # noqa: B018
    with pytest.raises(NotImplementedError, match="Implemented in torch_npu: Format, .*npu_weight_quant_batchmatmul"):
        torch_npu.npu_ps_roi_pooling  # noqa: B018
    for statement, text in (
        ("from torch_npu import npu_bert_apply_adam", "torch_npu.npu_bert_apply_adam is not implemented by anynpu"),
        ("import torch_npu.jit", "torch_npu.jit is not implemented by anynpu.*contrib, .*testing"),
        (
            "from torch_npu.npu.amp import master",
            "amp.master is not .* in torch_npu.npu.amp: GradScaler, autocast, get_amp_supported_dtype[.]",
        ),
        ("from torch_npu.npu import set_dump", "torch_npu.npu.set_dump is not implemented by anynpu"),
        ("from torch_npu.testing.testcase import X", "torch_npu.testing.testcase.X is not implemented .*TestCase"),
    ):
        with pytest.raises(ImportError, match=text):
            exec(statement, {})
    assert not hasattr(torch_npu, "npu_multi_head_attention") and not hasattr(torch.npu, "set_dump")
    with pytest.raises(
        AttributeError, match="torch_npu.contrib.npu_iou is not .* in torch_npu.contrib: .*transfer_to_npu"
    ):
        torch_npu.contrib.npu_iou  # noqa: B018


def test_a_damaged_compressed_weight_is_an_error_at_run_time():
    stream, index = compressed(32, 64)
    stream[5] ^= 1
    with pytest.raises(RuntimeError, match="block 0 of the compressed weight .* is damaged") as caught:
        torch_npu.npu_matmul_compress_dequant(codes(3, 64), stream, index, bias(32), words(torch.ones(1, 32)))
    assert "error code is 361001 " in str(caught.value)
