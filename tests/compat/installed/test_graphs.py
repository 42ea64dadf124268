# SPDX-License-Identifier: Apache-2.0
"""torch.npu.NPUGraph over the CPU."""

from __future__ import annotations

import pytest
import torch
import torch_npu


def captured(function):
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        result = function()
    return graph, result


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_replay_computes_with_new_inputs(context):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).npu()
    x = torch.randn(3, 4, device="npu")
    with context():
        graph, y = captured(lambda: model(x).unflatten(1, (2, 1)))
    for _ in range(2):
        x.copy_(torch.randn(3, 4))
        graph.replay()
        torch.npu.synchronize()
        torch.testing.assert_close(y.flatten(1), model(x), rtol=0, atol=0)


def test_the_operators_of_anynpu_are_captured():
    weight = torch_npu.npu_format_cast(torch.randint(-128, 128, (16, 8), dtype=torch.int8, device="npu"), 29)
    scale = torch.rand(8, device="npu")
    x = torch.zeros(4, 16, dtype=torch.bfloat16, device="npu")

    def layer():
        codes, scales = torch_npu.npu_dynamic_quant(x)
        return torch_npu.npu_quant_matmul(
            codes, weight, scale, pertoken_scale=scales, output_dtype=torch.bfloat16
        ).float()

    layer()  # what calls repeat is remembered
    graph, y = captured(layer)
    x.copy_(torch.randn(4, 16))
    graph.replay()
    assert y.abs().sum() > 0 and torch.equal(y, layer())


def test_a_capture_leaves_tensors_alone_and_a_replay_writes_to_them():
    cache, step = torch.zeros(4, 2, device="npu"), torch.zeros(1, dtype=torch.int64, device="npu")

    def write():
        cache.index_copy_(0, step, torch.ones(1, 2))
        cache[:, 0].mul_(2)
        step.add_(1)

    graph, _ = captured(write)
    assert not cache.any() and not step.any()
    graph.replay()
    graph.replay()
    assert cache.tolist() == [[4, 1], [2, 1], [0, 0], [0, 0]] and step.item() == 2


def test_a_training_step():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 1).npu(), torch.randn(5, 3, device="npu")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        optimizer.zero_grad(set_to_none=False)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    graph, loss = captured(step)
    graph.replay()
    after = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    assert torch.equal(step(), loss)
    for parameter, replayed, value in zip(model.parameters(), after, before, strict=True):
        assert torch.equal(parameter, replayed) and not torch.equal(parameter, value)


def test_compiled_models_are_captured():
    x = torch.ones(4, device="npu")
    compiled = torch.compile(lambda x: (x * 2).relu() + 1, backend="inductor", fullgraph=True)
    compiled(x)
    graph, y = captured(lambda: compiled(x))
    x.fill_(3)
    graph.replay()
    assert y.tolist() == [7] * 4


def test_reading_values_during_a_capture_is_refused():
    x, seen = torch.zeros(2, device="npu"), []
    with pytest.raises(RuntimeError, match="values of tensors cannot be read while a graph is captured"):
        captured(lambda: seen.append(torch.npu.is_current_stream_capturing()) or x.add_(1).sum().item())
    assert seen == [True] and not torch.npu.is_current_stream_capturing()
    assert not x.any()
    captured(lambda: x + 1)


def test_wrong_orders_of_calls():
    graph, _ = captured(lambda: torch.zeros(2, device="npu") + 1)
    assert graph.pool() != torch.npu.graph_pool_handle()
    with pytest.raises(RuntimeError, match=r"captured already, reset\(\) it first"):
        graph.capture_begin()
    with pytest.raises(RuntimeError, match="no capture was begun"):
        graph.capture_end()
    graph.reset()
    with pytest.raises(RuntimeError, match="the graph was not captured"):
        graph.replay()
    with torch.npu.graph(graph, pool=(0, 7)):
        with pytest.raises(RuntimeError, match="another capture is underway"):
            torch.npu.graph(torch.npu.NPUGraph()).__enter__()
    assert graph.pool() == (0, 7)
    with pytest.raises(NotImplementedError, match="auto_dispatch_capture"):
        torch.npu.graph(graph, auto_dispatch_capture=True)
