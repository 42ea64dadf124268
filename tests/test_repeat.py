# SPDX-License-Identifier: Apache-2.0
"""A repeated call is answered by the plan of an earlier one: if nothing but data differs, and nobody is watching."""

from __future__ import annotations

import inspect
import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import anynpu
from anynpu import _repeat
from anynpu._register import operators
from anynpu._repeat import PlannedKernel, RepeatedOperator, Repeats

PLANNED = sorted(name for name, operator in operators.items() if isinstance(operator.cpu, PlannedKernel))


class Watched(RepeatedOperator):
    """An operator with an empty memory that counts its calls through the dispatcher."""

    def __init__(self, name: str) -> None:
        overload = operators[name].overload
        keywords = [argument.name for argument in overload._schema.arguments if argument.kwarg_only]
        super().__init__(overload, operators[name].cpu, keywords)
        self.dispatched = 0

    def _dispatch(self, args):
        self.dispatched += 1
        return super()._dispatch(args)


def with_copies(args):
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in args)


def complete(name, args):
    """All arguments by position, as public functions pass them."""
    parameters = list(inspect.signature(operators[name].cpu._plan).parameters.values())
    return (*args, *[parameter.default for parameter in parameters[len(args) :]])


def assert_same(results, expected):
    if isinstance(expected, torch.Tensor):
        results, expected = [results], [expected]
    for result, other in zip(results, expected, strict=True):
        assert result.dtype == other.dtype and result.shape == other.shape and result.stride() == other.stride()
        torch.testing.assert_close(result, other, rtol=0, atol=0, equal_nan=True)


def test_the_operators_of_a_model_are_planned():
    hot = {"weight_quant_matmul", "quant_matmul", "dynamic_quant", "int4_pack", "rope_kv_cache", "kv_cache_attention"}
    assert hot <= set(PLANNED)


@pytest.mark.parametrize("name", PLANNED)
def test_a_repeated_call_skips_the_dispatcher_and_gives_the_same(name):
    for sample in operators[name].samples():
        call = Watched(name)
        args = complete(name, sample.args)
        dispatched, repeated = with_copies(args), with_copies(args)
        expected = call(*dispatched)
        assert_same(call(*repeated), expected)
        assert call.dispatched == 1, sample.name
        for before, after in zip(dispatched, repeated, strict=True):
            assert not isinstance(before, torch.Tensor) or torch.equal(before, after), "what the call writes to"


@pytest.mark.parametrize("name", PLANNED)
def test_a_repeated_call_in_the_dispatcher_is_not_checked_again(name):
    planned = []
    operator = operators[name]
    kernel = PlannedKernel(operator.cpu._plan)
    kernel._plan = lambda *args: planned.append(1) or operator.cpu._plan(*args)
    for sample in operator.samples():
        planned.clear()
        expected = kernel(*with_copies(sample.args))
        assert_same(kernel(*with_copies(sample.args)), expected)
        assert len(planned) == 1, sample.name


X, WEIGHT, SCALE = torch.randn(2, 64), torch.randint(-8, 8, (64, 8), dtype=torch.int8), torch.rand(8)


def matmul_args(x=X, weight=WEIGHT, scale=SCALE, offset=None, group_size=0, n=None):
    return x, weight, scale, offset, None, None, None, group_size, 0, n


class Subclass(torch.Tensor):
    pass


DIFFERENT = {
    "shape": {"x": torch.randn(3, 64)},
    "more axes": {"x": torch.randn(1, 2, 64)},
    "strides": {"x": torch.randn(64, 2).t()},
    "strides of the weight": {"weight": WEIGHT.t().contiguous().t()},
    "dtype": {"x": X.half()},
    "dtype of the scale": {"x": X.half(), "scale": SCALE.half()},
    "parameter": {"scale": torch.nn.Parameter(SCALE, requires_grad=False)},
    "subclass": {"x": X.as_subclass(Subclass)},
    "an optional tensor": {"offset": torch.rand(8)},
    "option": {"scale": torch.rand(2, 8), "group_size": 32},
    "optional number": {"n": 8},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_call_that_differs_is_dispatched(name):
    call = Watched("weight_quant_matmul")
    call(*matmul_args()), call(*matmul_args())
    assert call.dispatched == 1
    args = matmul_args(**DIFFERENT[name])
    expected = operators["weight_quant_matmul"].overload(*args)
    assert_same(call(*args), expected)
    assert call.dispatched == 2
    assert_same(call(*args), expected)


@pytest.mark.parametrize("group_size", [False, 0.0, "0", [0]])
def test_an_option_of_another_type_is_another_option(group_size):
    call = Watched("weight_quant_matmul")
    call(*matmul_args())
    try:
        operators["weight_quant_matmul"].overload(*matmul_args(group_size=group_size))
    except Exception as error:
        with pytest.raises(type(error)):
            call(*matmul_args(group_size=group_size))
    else:
        call(*matmul_args(group_size=group_size))
    assert call.dispatched == 2


def test_elements_of_options_keep_their_types():
    repeats = Repeats()
    repeats.add((X, [1, 2], 0.0), "plan")
    assert repeats.find((X, [1, 2], 0.0))[0] == "plan"
    for option in ([1, True], [1.0, 2], [2, 1], [1]):
        assert repeats.find((X, option, 0.0)) is None
    assert repeats.find((X, [1, 2], -0.0)) is None


@pytest.mark.parametrize("name", ["x", "weight", "scale"])
def test_errors_of_repeated_calls_are_those_of_the_first(name):
    call = Watched("weight_quant_matmul")
    call(*matmul_args())
    wrong = {"x": torch.randn(2, 63), "weight": WEIGHT.double(), "scale": torch.rand(7)}[name]
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match="weight_quant_matmul: "):
            call(*matmul_args(**{name: wrong}))


def test_values_are_checked_in_repeated_calls_too():
    call = Watched("int4_pack")
    call(torch.zeros(1, 8, dtype=torch.int32), torch.int32)
    with pytest.raises(ValueError, match="int4_pack"):
        call(torch.full((1, 8), 8, dtype=torch.int32), torch.int32)
    assert call.dispatched == 1


@pytest.mark.parametrize("order", [(0, 1, 0, 1), (1, 0, 1, 0)])
def test_tensors_of_the_same_object_have_a_plan_of_their_own(order):
    call, scale = Watched("weight_quant_matmul"), torch.rand(8)
    calls = matmul_args(scale=scale, offset=scale), matmul_args(scale=scale, offset=scale.clone())
    expected = operators["weight_quant_matmul"].reference(*calls[0])
    results = [call(*calls[i]) for i in order]
    assert call.dispatched == 2
    for result in results:
        torch.testing.assert_close(result, expected)


def test_autograd_is_told_of_calls_that_it_must_know():
    x = X.clone().requires_grad_()
    call = Watched("weight_quant_matmul")
    call(*matmul_args()), call(*matmul_args())
    expected = operators["weight_quant_matmul"].overload(*matmul_args(x))
    for dispatched in (2, 4):
        with torch.no_grad():
            assert call(*matmul_args(x)).grad_fn is None
        result = call(*matmul_args(x))
        assert type(result.grad_fn) is type(expected.grad_fn) and result.requires_grad == expected.requires_grad
        assert call.dispatched == dispatched + 1


def test_inference_mode_makes_inference_tensors():
    call = Watched("weight_quant_matmul")
    for _ in range(2):
        assert not call(*matmul_args()).is_inference()
        with torch.inference_mode():
            result = call(*matmul_args())
            again = call(*matmul_args(x=result.new_ones(2, 64)))
        assert result.is_inference() and again.is_inference()
    assert call.dispatched == 3  # ordinary mode, inference mode, and there an inference tensor


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Calls, Functions])
def test_modes_see_every_call(mode):
    for _ in range(2):
        anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
        with mode() as watch:
            anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
        assert "anynpu.weight_quant_matmul.default" in watch.seen


def test_the_profiler_sees_every_call():
    anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
    assert "anynpu::weight_quant_matmul" in [event.key for event in profile.key_averages()]


def test_a_subclass_sees_every_call():
    seen = []

    class Seeing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return super().__torch_function__(function, types, args, kwargs)

    for count in range(1, 4):
        anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
        anynpu.weight_quant_matmul(X.as_subclass(Seeing), WEIGHT, SCALE)
        assert seen.count("anynpu.weight_quant_matmul.default") == count


def test_transforms_see_every_call():
    expected = anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
    several = torch.stack([X, 2 * X])
    for _ in range(2):
        result = torch.vmap(lambda x: anynpu.weight_quant_matmul(x, WEIGHT, SCALE))(several)
        torch.testing.assert_close(result, torch.stack([expected, 2 * expected]))
        functional = torch.func.functionalize(lambda x: anynpu.weight_quant_matmul(x, WEIGHT, SCALE))
        assert torch.equal(functional(X), expected)
        assert torch.equal(anynpu.weight_quant_matmul(X, WEIGHT, SCALE), expected)


def test_fake_and_meta_tensors_are_not_computed():
    from torch._subclasses import FakeTensorMode

    anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
    for _ in range(2):
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(tensor) for tensor in (X, WEIGHT, SCALE)]
            assert type(anynpu.weight_quant_matmul(*fakes)) is type(fakes[0])
        result = anynpu.weight_quant_matmul(X.to("meta"), WEIGHT.to("meta"), SCALE.to("meta"))
        assert result.is_meta and result.shape == (2, 8)


def test_tracers_see_every_call():
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        return anynpu.weight_quant_matmul(
            anynpu.weight_quant_matmul(x, WEIGHT, SCALE) @ torch.ones(8, 64), WEIGHT, SCALE
        )

    expected = function(X)
    for _ in range(2):
        traced = torch.jit.trace(function, (X,))
        assert str(traced.graph).count("anynpu::weight_quant_matmul") == 2
        assert torch.equal(traced(2 * X), function(2 * X))
        assert make_fx(function)(X).code.count("anynpu.weight_quant_matmul") == 2
        assert torch.equal(function(X), expected)


def test_compiled_graphs_hold_the_call():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
    compiled = torch.compile(
        lambda x: anynpu.weight_quant_matmul(x, WEIGHT, SCALE) + 1, backend=backend, fullgraph=True
    )
    assert torch.equal(compiled(X), anynpu.weight_quant_matmul(X, WEIGHT, SCALE) + 1)
    assert "weight_quant_matmul" in graphs[0] and len(graphs) == 1


def test_autocast_and_default_devices_make_no_difference():
    expected = anynpu.weight_quant_matmul(X, WEIGHT, SCALE)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            assert_same(anynpu.weight_quant_matmul(X, WEIGHT, SCALE), expected)
        with torch.device("meta"):
            assert_same(anynpu.weight_quant_matmul(X, WEIGHT, SCALE), expected)


def test_views_that_hide_their_values_are_materialised():
    """The bytes of a negated view are not its values; only the dispatcher knows."""
    x = torch.randn(2, 64, dtype=torch.complex64)
    call = Watched("weight_quant_matmul")
    call(*matmul_args(x.imag)), call(*matmul_args(x.imag))
    negated = x.conj().imag
    assert negated.is_neg()
    for _ in range(2):
        assert_same(call(*matmul_args(negated)), call(*matmul_args(negated.resolve_neg().contiguous())))


def test_strict_mode_is_not_answered_from_memory():
    args = {"x": torch.ones(2, 64), "weight": torch.ones(64, 8, dtype=torch.int8), "scale": torch.ones(8)}
    for _ in range(2):
        anynpu.weight_quant_matmul(**args)
        with anynpu.strict("Ascend910B"):
            for function in (anynpu.weight_quant_matmul, operators["weight_quant_matmul"].overload):
                with pytest.raises(ValueError, match="wants x in float16 or bfloat16"):
                    function(**args)


def test_threads_share_a_plan():
    """The GIL is free while the kernel runs: each call must have arguments of its own."""
    call = Watched("weight_quant_matmul")
    inputs = [torch.full((4, 64), float(value)) for value in range(8)]
    expected = [call(*matmul_args(x)) for x in inputs]
    wrong = []

    def work(index):
        for _ in range(300):
            if not torch.equal(call(*matmul_args(inputs[index])), expected[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert not wrong and call.dispatched == 1


def test_the_weights_of_a_model_are_remembered_whatever_their_shapes():
    """As of compressed weights: no two streams have one length."""
    operator = Watched("weight_quant_matmul")
    sizes = range(1, 2 * _repeat._MOST_ALIKE)
    calls = [matmul_args(weight=torch.ones(64, n, dtype=torch.int8), scale=torch.ones(n)) for n in sizes]
    for args in calls * 2:
        operator(*args)
    assert operator.dispatched == len(calls)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(_repeat, "_MOST_KEPT", 3)
    monkeypatch.setattr(_repeat, "_MOST_ALIKE", 2)
    call = Watched("weight_quant_matmul")
    weights = [torch.ones(64, n, dtype=torch.int8) for n in range(1, 5)]
    for m in range(1, 6):
        for weight in weights:
            for scale in torch.ones(1), torch.ones(weight.shape[1]), torch.ones(1, weight.shape[1]):
                args = matmul_args(torch.ones(m, 64), weight, scale)
                assert (call(*args) == 64).all()
    (signature,) = call._repeats._signatures.values()
    assert len(signature.plans) <= 3
    assert all(len(plans) <= 2 for plans in signature.plans.values())


class SeesOnlyTypes:
    def __init__(self, *tensors, **sizes):
        pass

    def check(self, *tensors):
        return True


class WithoutKeywords:
    def __init__(self, *tensors):
        pass


@pytest.mark.parametrize("guards", [None, SeesOnlyTypes, WithoutKeywords])
def test_guards_that_are_missing_or_changed_are_not_used(guards, monkeypatch):
    assert _repeat._guards_work() and len(_repeat._plain_states()) == 2
    monkeypatch.setattr(_repeat, "_TensorGuards", guards)
    assert _repeat._plain_states() == []


def test_without_guards_every_call_is_dispatched(monkeypatch):
    monkeypatch.setattr(_repeat, "_STATES", [])
    call = Watched("weight_quant_matmul")
    for x in (X, X, torch.randn(5, 64)):
        args = matmul_args(x)
        assert_same(call(*args), operators["weight_quant_matmul"].overload(*args))
    assert call.dispatched == 3 and not call._repeats._signatures


def test_outputs_are_allocated_without_the_private_function(monkeypatch):
    from anynpu import _native

    monkeypatch.setattr(_native, "allocate", _native.allocate_publicly)
    assert_same(
        Watched("weight_quant_matmul")(*matmul_args()), operators["weight_quant_matmul"].overload(*matmul_args())
    )


def test_huge_pages_are_asked_for_within_large_outputs(monkeypatch):
    from anynpu import _native

    advised = []
    monkeypatch.setattr(_native, "_madvise", lambda *args: advised.append(args))
    x = torch.randn(9 << 20).bfloat16()
    small, large = anynpu.cast(x[:1000], torch.float32), anynpu.cast(x, torch.float32)
    assert torch.equal(small, x[:1000].float()) and torch.equal(large, x.float())
    ((begin, size, _),) = advised
    assert begin % _native._HUGE_PAGE == size % _native._HUGE_PAGE == 0
    assert large.data_ptr() <= begin and begin + size <= large.data_ptr() + large.nbytes
    assert size > large.nbytes - 2 * _native._HUGE_PAGE
