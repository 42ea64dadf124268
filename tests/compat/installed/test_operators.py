# SPDX-License-Identifier: Apache-2.0
"""The functions of torch_npu: published names and errors over the operators of anynpu."""

from __future__ import annotations

import builtins
import copy
import gc
import threading
import weakref

import case_table
import pytest
import torch
import torch_npu

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


def rows(valid):
    return [
        pytest.param(operator, case, id=f"{operator}: {case.name}")
        for operator, (_, names) in FUNCTIONS.items()
        for case in case_table.load(operator)
        if (case.error is None) == valid and case.args.keys() <= names.keys()
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


def random_int4(*shape, seed=0):
    return torch.randint(-8, 8, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def reals(*shape, dtype=torch.float16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_grouped_matmul_takes_a_list_of_numbers_and_bare_tensors():
    x, weight = reals(6, 16), reals(2, 16, 8, seed=1)
    expected = torch_npu.npu_grouped_matmul([x], [weight], group_list=torch.tensor([2, 6]), split_item=2, group_type=0)
    for group_type in (0, None):
        result = torch_npu.npu_grouped_matmul(x, weight, group_list=[2, 6], split_item=2, group_type=group_type)
        assert torch.equal(result[0], expected[0])
    with pytest.raises(RuntimeError, match="Requires manual passing group_type, current is None."):
        torch_npu.npu_grouped_matmul([x], [weight], group_list=torch.tensor([2, 6]), split_item=2)
    for name in ("offset", "activation_input"):
        with pytest.raises(
            NotImplementedError, match=f"{name} is for modes that anynpu does not implement, got a list"
        ):
            torch_npu.npu_grouped_matmul(
                x, weight, group_list=[2, 6], split_item=2, group_type=0, **{name: [torch.zeros(8)]}
            )
    with pytest.raises(NotImplementedError, match="act_type is for modes that anynpu does not implement, got 5"):
        torch_npu.npu_grouped_matmul(
            [x], [weight], group_list=torch.tensor([2, 6]), split_item=2, group_type=0, act_type=5
        )


@pytest.mark.parametrize("groups", [None, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grouped_matmul_of_int4_rows(groups, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-8, 8, s, dtype=torch.int32, generator=generator) for s in ((7, 64), (3, 64, 24)))
    scale = torch.rand((3, 24) if groups is None else (3, groups, 24), generator=generator) + 0.5
    rows, counts = torch.rand(7, generator=generator) + 0.5, [3, 0, 4]
    packed = [torch_npu.npu_convert_weight_to_int4pack(t.flatten(0, -2).npu()) for t in (x, weight)]
    options = {"group_list_type": 1, "group_type": 0, "split_item": 2, "output_dtype": dtype}

    def product(x, weight, scale, rows, counts):
        return torch_npu.npu_grouped_matmul(
            [x], [weight], scale=[scale], per_token_scale=[rows], group_list=counts, **options
        )[0]

    args = packed[0], packed[1].view(3, 64, 3), anynpu.pack_scale(scale), rows.npu(), torch.tensor(counts).npu()
    result = product(*args)
    spread = scale.view(3, -1, 1, 24).expand(3, -1, 64 // (groups or 1), 24).reshape(3, 64, 24).double()
    factors = weight.double() * spread
    parts = x.double().split(counts)
    expected = torch.cat([part @ matrix for part, matrix in zip(parts, factors, strict=True)]) * rows[:, None].double()
    largest = 16 * 8 * spread.sum(1).amax() * rows.max()  # of the sums that the bias takes away, in float32
    error = torch.finfo(dtype).eps / 2 * expected.abs() + 2.0**-24 * 16 * largest
    assert result.dtype == dtype and ((result.double() - expected).abs() <= error).all()
    torch.compiler.reset()
    assert torch.equal(torch.compile(product, backend="aot_eager", fullgraph=True)(*args), result)
    with pytest.raises(NotImplementedError, match="bias is for modes that anynpu does not implement"):
        torch_npu.npu_grouped_matmul([args[0]], [args[1]], scale=[args[2]], bias=[rows], group_list=args[4], **options)


def test_grouped_matmul_in_a_graph():
    def function(x, weight, group_list):
        return torch_npu.npu_grouped_matmul([x], [weight], group_list=group_list, split_item=2, group_type=0)[0]

    arguments = torch.ones(5, 8, dtype=torch.int8), torch.ones(2, 8, 3, dtype=torch.int8), torch.tensor([2, 4])
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), function(*arguments))


def test_published_error_texts_of_the_packer():
    pack = torch_npu.npu_convert_weight_to_int4pack
    for weight, text in (
        (random_int4(16, 8).t(), "weight should be contiguous"),
        (random_int4(8), "weight shape only support dim num 2/3, but it is 1"),
        (random_int4(8, 8).to(torch.int8), "weight dtype only support int32 and float32, but it is int8"),
        (random_int4(0, 8), "weight dim should be greater than 0"),
        (random_int4(8, 12), "weight last dim should be the multiple of 8, but it is 12"),
    ):
        with pytest.raises(RuntimeError, match=text):
            pack(weight)
    with pytest.raises(TypeError, match=r"weight must be a tensor, got NoneType(.|\n)*error code is 161001"):
        pack(None)
    with pytest.raises(TypeError, match=r"weight must be a tensor, got list(.|\n)*error code is 161002"):
        pack([[1]])
    with pytest.raises(TypeError, match="antiquant_scale must be a tensor, got NoneType"):
        torch_npu.npu_weight_quant_batchmatmul(reals(2, 64), nz_weight(), None)


def test_arguments_of_another_kind_are_named_and_not_printed():
    matmul, x, weight, scale = torch_npu.npu_weight_quant_batchmatmul, reals(2, 64), int8(64, 8), reals(8)
    for call, text in (
        (lambda: matmul(x.numpy(), weight, scale), "x must be a tensor, got ndarray"),
        (lambda: matmul(x, weight, scale, bias=1), "bias must be a tensor or None, got int"),
        (lambda: matmul(x, weight, scale, antiquant_group_size=32.0), "antiquant_group_size must be an int, got float"),
        (lambda: torch_npu.npu_grouped_matmul([None], [weight]), "x must be a list of tensors, got list"),
        (lambda: torch_npu.npu_quantize(x, scale, None, "qint8"), "dtype must be an int or torch dtype, got str"),
        (lambda: torch_npu.npu_format_cast(x, None), "acl_format must be an int, got NoneType"),
        (lambda: torch_npu.get_npu_format(None), "self must be a tensor, got NoneType"),
    ):
        with pytest.raises(TypeError, match=text) as refused:
            call()
        assert len(str(refused.value)) < 250


def int8(*shape, seed=0):
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def bias(n):
    return torch.arange(n, dtype=torch.int32)


def words(scale):
    return scale.view(torch.int32).long()


def compressed(n, k):
    weight = anynpu.formats.compress_weight(int8(n, k, seed=1))
    return weight.stream, weight.index


def call(name):
    """A small valid call of each operator of torch.ops.npu."""
    packed = anynpu.int4_pack(random_int4(64, 32))
    scales = reals(2, 32, dtype=torch.float32).abs()
    return {
        "npu_convert_weight_to_int4pack": (random_int4(16, 24), 0),
        "npu_weight_quant_batchmatmul": (reals(3, 64), packed, scales.half(), None, None, None, None, 32),
        "npu_trans_quant_param": (scales[0], scales[1]),
        "npu_anti_quant": (packed, scales[0]),
        "npu_quant_matmul": (int8(3, 64), int8(64, 32), scales[0]),
        "npu_dynamic_quant": (reals(3, 64),),
        "npu_matmul_compress_dequant": (int8(3, 64), *compressed(32, 64), bias(32), words(scales[:1])),
        "npu_quantize": (reals(3, 32), scales[0], None, torch.qint8, -1, False),
        "npu_format_cast": (reals(16, 32), 29),
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
    x, words = int8(5, 512).npu(), torch_npu.npu_convert_weight_to_int4pack(random_int4(512, 32).npu())
    scale = torch.stack([torch_npu.npu_trans_quant_param(reals(32, dtype=torch.float32, seed=i)) for i in range(2)])
    options = {"offset": reals(32, dtype=torch.float32), "pertoken_scale": torch.rand(5, 1)}
    result = torch_npu.npu_quant_matmul(
        x, words, scale, **options, output_dtype=torch.bfloat16, group_sizes=[0, 0, 256]
    )
    expected = anynpu.quant_matmul(x, words, scale, **options, output_dtype=torch.bfloat16, group_size=256)
    assert torch.equal(result, expected)
    with pytest.raises(NotImplementedError, match=r"group_sizes must be \[0, 0, group_k\], .* got \[1, 128, 128\]"):
        torch_npu.npu_quant_matmul(x, words, scale, group_sizes=[1, 128, 128])


def test_compressed_matmul_takes_the_documented_dtypes():
    packed = anynpu.formats.compress_weight(int8(8, 64))
    with pytest.raises(TypeError, match="npu_matmul_compress_dequant: scale must be int64 or uint64, got float32"):
        torch_npu.npu_matmul_compress_dequant(int8(3, 64), packed.stream, packed.index, bias(8), torch.ones(1, 8))


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
        values, scale = random_int4(n, 64, seed=n), reals(n, 2).abs()
        weight = torch_npu.npu_convert_weight_to_int4pack(values.npu())
        expected = model(reals(m, 64), weight, scale, 32)
        assert torch.equal(compiled(reals(m, 64), weight, scale, 32), expected)
        real = reals(m, 64).double() @ (values.t().double() * scale.t().double().repeat_interleave(32, 0))
        torch.testing.assert_close(expected.double(), real, rtol=2**-10, atol=2**-10)


def test_errors_in_a_graph_name_the_rule():
    torch.compiler.reset()
    compiled = torch.compile(torch_npu.npu_convert_weight_to_int4pack, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="weight last dim should be the multiple of 8, but it is 12"):
        compiled(random_int4(4, 12))


def test_formats():
    plain = reals(15, 17).npu()
    assert torch_npu.get_npu_format(plain) == torch_npu.Format.ND == 2
    nz = torch_npu.npu_format_cast(plain, 29)
    assert torch_npu.get_npu_format(nz) == torch_npu.Format.FRACTAL_NZ == 29
    assert nz.data_ptr() != plain.data_ptr() and torch.equal(nz, plain)
    assert torch_npu.npu_format_cast(nz, torch_npu.Format.FRACTAL_NZ) is nz is nz.npu()
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(plain, nz)) == 29
    back = torch_npu.npu_format_cast(nz, torch_npu.Format.ND, customize_dtype=torch.int8)
    assert torch_npu.get_npu_format(back) == 2 and torch.equal(back, plain)
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast(reals(5), 29)) == 2
    assert torch_npu.npu_format_cast_(plain, 29) is plain and torch_npu.get_npu_format(plain) == 29
    assert torch_npu.get_npu_format(torch_npu.npu_format_cast_(back, plain)) == 29
    x = reals(4, 4, dtype=torch.float32).requires_grad_()
    torch_npu.npu_format_cast(x, 29).square().sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())
    with pytest.raises(ValueError, match=r"acl_format must be one of NCHW 0, .*FRACTAL_NZ 29.*, got 5"):
        torch_npu.npu_format_cast(plain, 5)


def nz_weight(k=64, n=32, seed=0):
    return torch_npu.npu_convert_weight_to_int4pack(torch_npu.npu_format_cast(random_int4(k, n, seed=seed).npu(), 29))


def test_the_format_goes_with_the_storage():
    weight = nz_weight()
    assert torch_npu.get_npu_format(weight) == 29
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    for shared in (weight.t(), weight[:1], weight.detach(), module.weight, module.state_dict()["weight"]):
        assert torch_npu.get_npu_format(shared) == 29
    torch_npu.npu_weight_quant_batchmatmul(reals(1, 64), weight, reals(1, 32))
    for copied in (weight.clone(), copy.deepcopy(module).weight, weight.cpu()):
        assert torch_npu.get_npu_format(copied) == 2 and torch.equal(copied, weight)


def test_tagged_tensors_are_saved_as_plain_ones(tmp_path):
    weight = nz_weight()
    torch_npu.npu_weight_quant_batchmatmul(reals(1, 64), weight, reals(1, 32))
    torch.save({"weight": weight}, tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)["weight"]
    assert torch.equal(loaded, weight) and torch_npu.get_npu_format(loaded) == 2
    assert (tmp_path / "a.pt").stat().st_size < weight.nbytes + 4096


@pytest.fixture
def prepack_count(monkeypatch):
    calls = []
    original = anynpu.weight_quant_prepack
    monkeypatch.setattr(anynpu, "weight_quant_prepack", lambda weight: calls.append(weight.shape) or original(weight))
    return lambda: len(calls)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_tagged_weight_is_prepacked_once_and_gives_equal_numbers(prepack_count, dtype, transposed):
    values = random_int4(72, 40)
    plain = anynpu.int4_pack(values.t().contiguous()).t() if transposed else anynpu.int4_pack(values)
    nz = torch_npu.npu_format_cast(plain, 29)
    assert nz.stride() == plain.stride()
    scale, offset = reals(3, 40, dtype=dtype), reals(3, 40, dtype=dtype, seed=1)
    for m in (1, 4, 33):
        x = reals(m, 72, dtype=dtype)
        expected = torch_npu.npu_weight_quant_batchmatmul(x, plain, scale, offset, antiquant_group_size=32)
        assert torch.equal(
            torch_npu.npu_weight_quant_batchmatmul(x, nz, scale, offset, antiquant_group_size=32), expected
        )
    assert prepack_count() == 1
    compiled = torch.compile(torch_npu.npu_weight_quant_batchmatmul, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.compiler.reset()
    assert torch.equal(compiled(x, nz, scale, offset, antiquant_group_size=32), expected)
    assert prepack_count() == 1


@pytest.mark.parametrize("write", ["in place", "through data", "inference"])
def test_a_changed_weight_is_prepacked_again(prepack_count, write):
    x, scale, other = reals(2, 64), reals(1, 32), anynpu.int4_pack(random_int4(64, 32, seed=9))
    with torch.inference_mode(write == "inference"):
        weight = nz_weight()
        before = torch_npu.npu_weight_quant_batchmatmul(x, weight, scale)
        (weight.data if write == "through data" else weight).copy_(other)
        after = torch_npu.npu_weight_quant_batchmatmul(x, weight, scale)
    assert torch.equal(after, torch_npu.npu_weight_quant_batchmatmul(x, other, scale))
    assert not torch.equal(before, after) and prepack_count() == 2


def test_the_prepacked_copy_is_freed_with_the_weight(monkeypatch):
    blobs = []
    original = anynpu.weight_quant_prepack

    def prepack(weight):
        blob = original(weight)
        blobs.append(weakref.ref(blob))
        return blob

    monkeypatch.setattr(anynpu, "weight_quant_prepack", prepack)
    weight = nz_weight()
    torch_npu.npu_weight_quant_batchmatmul(reals(1, 64), weight, reals(1, 32))
    assert blobs[0]() is not None
    del weight
    gc.collect()
    assert blobs[0]() is None


def test_a_tagged_weight_refuses_a_wrong_x_like_a_plain_one():
    for k in (63, 65, 61):
        with pytest.raises(ValueError, match=f"x_k_dim is {k}, weight_k_dim is 64"):
            torch_npu.npu_weight_quant_batchmatmul(reals(2, k), nz_weight(), reals(1, 32))


def test_threads_share_a_tagged_weight():
    weight, x, scale = nz_weight(256, 256), reals(4, 256), reals(1, 256)
    expected = torch_npu.npu_weight_quant_batchmatmul(x, weight.clone(), scale)
    results = []
    threads = [
        threading.Thread(
            target=lambda: results.extend(
                torch.equal(torch_npu.npu_weight_quant_batchmatmul(x, weight, scale), expected) for _ in range(10)
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 40


def test_weight_dtype():
    x, scale = reals(2, 64), reals(1, 32)
    weight = nz_weight()
    expected = torch_npu.npu_weight_quant_batchmatmul(x, weight, scale)
    for dtype in (torch_npu.int4, None):
        assert torch.equal(torch_npu.npu_weight_quant_batchmatmul(x, weight, scale, weight_dtype=dtype), expected)
    with pytest.raises(TypeError, match="weight must be torch.int8 for weight_dtype torch.int8, got torch.int32"):
        torch_npu.npu_weight_quant_batchmatmul(x, weight, scale, weight_dtype=torch.int8)
    with pytest.raises(NotImplementedError, match="weight_dtype 296 is not implemented by anynpu"):
        torch_npu.npu_weight_quant_batchmatmul(x, weight, scale, weight_dtype=296)


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
    packed, codes, scale = anynpu.int4_pack(random_int4(4, 16)), torch.ones(4, 16, dtype=torch.int8), torch.ones(16)
    for x, dtypes in ((packed, (torch_npu.int4, torch.quint4x2, 16)), (codes, (torch.int8, 1))):
        for dtype in dtypes:
            result = torch_npu.npu_anti_quant(x, scale, dst_dtype=torch.bfloat16, src_dtype=dtype)
            assert torch.equal(result, anynpu.anti_quant(x, scale, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="The datatype of x is int32, src_dtype must be int4"):
        torch_npu.npu_anti_quant(packed, scale, src_dtype=torch.int8)
    with pytest.raises(RuntimeError, match="The datatype of x must match src_dtype"):
        torch_npu.npu_anti_quant(codes, scale, src_dtype=torch_npu.int4)


STRICT = {
    "group size": (dict(k=512, n=64, group=256), r"group_size in \{64, 128\}, got 256"),
    "ragged group": (dict(k=96, n=64, group=64), "K % group_size == 0, got 96 % 64"),
    "columns": (dict(k=128, n=40, group=64), "N % 64 == 0, got N = 40"),
    "per channel": (dict(k=64, n=64, group=0), "wants a transposed weight"),
    "quant scale": (dict(k=64, n=64, group=0, quant=True), "no quant_scale with a FRACTAL_NZ weight"),
}


@pytest.mark.parametrize("name", STRICT)
def test_strict_mode_enforces_the_rules_of_tagged_weights(name):
    sizes, rule = STRICT[name]
    groups = max(1, -(-sizes["k"] // sizes["group"])) if sizes["group"] else 1
    arguments = dict(
        x=reals(2, sizes["k"]),
        antiquant_scale=reals(groups, sizes["n"]),
        antiquant_group_size=sizes["group"],
        quant_scale=torch.ones(1) if sizes.get("quant") else None,
    )
    weight = nz_weight(sizes["k"], sizes["n"])
    torch_npu.npu_weight_quant_batchmatmul(weight=weight, **arguments)
    with anynpu.strict("Ascend910B"):
        with pytest.raises(RuntimeError, match=rf"Ascend910B \(Atlas A2\).*{rule}(.|\n)*161002"):
            torch_npu.npu_weight_quant_batchmatmul(weight=weight, **arguments)
        torch_npu.npu_weight_quant_batchmatmul(weight=weight.clone(), **arguments)


def test_strict_mode_accepts_what_the_chip_accepts():
    with anynpu.strict("Ascend910_9391"):
        torch_npu.npu_weight_quant_batchmatmul(reals(2, 128), nz_weight(128, 64), reals(2, 64), antiquant_group_size=64)
        transposed = torch_npu.npu_format_cast(anynpu.int4_pack(random_int4(64, 128)), 29).t()
        torch_npu.npu_weight_quant_batchmatmul(reals(2, 128), transposed, reals(1, 64))


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
        ("from torch_npu.npu import MemPool", "torch_npu.npu.MemPool is not implemented by anynpu"),
        ("from torch_npu.testing.testcase import X", "torch_npu.testing.testcase.X is not implemented .*TestCase"),
    ):
        with pytest.raises(ImportError, match=text):
            exec(statement, {})
    assert not hasattr(torch_npu, "npu_multi_head_attention") and not hasattr(torch.npu, "MemPool")
    with pytest.raises(
        AttributeError, match="torch_npu.contrib.function is not .* in torch_npu.contrib: .*transfer_to_npu"
    ):
        torch_npu.contrib.function  # noqa: B018


def test_a_damaged_compressed_weight_is_an_error_at_run_time():
    stream, index = compressed(32, 64)
    stream[5] ^= 1
    with pytest.raises(RuntimeError, match="block 0 of the compressed weight .* is damaged") as caught:
        torch_npu.npu_matmul_compress_dequant(int8(3, 64), stream, index, bias(32), words(torch.ones(1, 32)))
    assert "error code is 361001 " in str(caught.value)


def groups_of_rows(per_token):
    x, weight = int8(9, 32), [int8(32, 16, seed=seed) for seed in (1, 2, 3)]
    options = {"scale": [torch.full((16,), 0.01).npu() for _ in weight], "output_dtype": torch.float16}
    if per_token:
        options["per_token_scale"] = [torch.rand(9, generator=torch.Generator().manual_seed(4)).npu() + 0.5]
    return x, weight, options


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("split", [{}, {"split_item": 0}, {"split_item": 1}], ids=repr)
def test_one_x_and_many_results(per_token, split):
    x, weight, options = groups_of_rows(per_token)
    results = torch_npu.npu_grouped_matmul([x], weight, group_list=[2, 5, 8], **split, **options)
    assert [tuple(result.shape) for result in results] == [(2, 16), (3, 16), (3, 16)]
    whole = torch_npu.npu_grouped_matmul([x], weight, group_list=[2, 5, 8], split_item=3, **options)[0]
    assert torch.equal(torch.cat(results), whole[:8])
    exact = x[2:5].double() @ weight[1].double() * 0.01
    exact = exact * options["per_token_scale"][0][2:5, None].double() if per_token else exact
    torch.testing.assert_close(results[1].double(), exact, rtol=2e-3, atol=1e-4)


def test_groups_that_do_not_fit_one_x():
    x, weight, options = groups_of_rows(False)
    with pytest.raises(ValueError, match=r"length of weight equals .* x \[1\], weight \[3\], group_list \[2\]"):
        torch_npu.npu_grouped_matmul([x], weight, group_list=[2, 9], **options)
    for ends in ([5, 2, 9], [2, 5, 10], [-1, 2, 3]):
        with pytest.raises(ValueError, match="group_list must be running sums of at most 9, the rows of x, got"):
            torch_npu.npu_grouped_matmul([x], weight, group_list=ends, **options)
