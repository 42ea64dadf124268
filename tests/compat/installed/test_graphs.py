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


def test_what_compiled_code_makes_of_an_operator_that_writes():
    library = torch.library.Library("graphs_written", "DEF")
    library.define("add_one(Tensor(a!) x) -> ()")

    def add_one(x):
        x.add_(1)

    library.impl("add_one", add_one, "CPU")
    functional = torch.ops.higher_order.auto_functionalized_v2
    x = torch.zeros(3, device="npu")
    options = {"_x_base_index": 0, "_x_size": (3,), "_x_stride": (1,), "_x_storage_offset": 0, "_all_bases": [x]}
    graph, (_, y) = captured(lambda: functional(torch.ops.graphs_written.add_one.default, **options))
    x.fill_(5)
    graph.replay()
    assert x.tolist() == [5, 5, 5] and y.tolist() == [6, 6, 6]

    def chooses():
        return torch.ops.higher_order.cond(x.sum() > 0, torch.neg, torch.abs, (x,))

    with pytest.raises(RuntimeError, match="NPUGraph: cond cannot be captured"):
        captured(chooses)


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


class PagedDecoder:
    """Attention over a paged cache as serving engines capture it: its lengths are changed after each replay began."""

    def __init__(self, paged):
        self.paged, self.stream, self.update_stream = paged, torch.npu.current_stream(), torch.npu.Stream()
        generator = torch.Generator().manual_seed(0)
        self.cache = [torch.randn(6, 16, 2, 8, generator=generator).npu() for _ in range(2)]
        self.table = torch.tensor([[4, 1], [0, 5]], dtype=torch.int32).npu()
        self.x, self.out = torch.zeros(2, 4, 8).npu(), torch.empty(2, 4, 8).npu()
        self.event, self.graph = torch.npu.ExternalEvent(), torch.npu.NPUGraph()
        with torch.npu.graph(self.graph):
            self.q = self.x * 2
            self.event.wait(self.stream)
            self.event.reset(self.stream)
            torch.npu.graph_task_group_begin(self.stream)
            self.attend([1, 1])
            self.handle = torch.npu.graph_task_group_end(self.stream)
            self.y = self.out.view(2, 32) + 1

    def attend(self, lengths):
        if self.paged:
            torch_npu._npu_paged_attention(
                query=self.q, key_cache=self.cache[0], value_cache=self.cache[1], num_kv_heads=2, num_heads=4,
                scale_value=0.5, block_table=self.table, context_lens=torch.tensor(lengths, dtype=torch.int32),
                out=self.out,
            )  # fmt: skip
        else:
            key, value = [cache.view(6, 16, 16) for cache in self.cache]
            torch_npu.npu_fused_infer_attention_score.out(
                query=self.q, key=key, value=value, block_table=self.table, input_layout="TND", block_size=16,
                actual_seq_lengths=[1, 2], actual_seq_lengths_kv=lengths, num_key_value_heads=2, num_heads=4,
                scale=0.5, workspace=None, out=[self.out, torch.empty(1).npu()],
            )  # fmt: skip

    def update(self, lengths):
        torch.npu.graph_task_update_begin(self.update_stream, self.handle)
        self.attend(lengths)
        torch.npu.graph_task_update_end(self.update_stream)
        self.event.record(self.update_stream)

    def expected(self, lengths):
        result = torch.empty(2, 4, 8, dtype=torch.float64)
        for sequence, head in ((sequence, head) for sequence in range(2) for head in range(4)):
            rows = [
                cache[self.table[sequence].long()].flatten(0, 1)[: lengths[sequence], head // 2] for cache in self.cache
            ]
            weights = torch.softmax(rows[0].double() @ self.x[sequence, head].double(), 0)  # 2 * 0.5
            result[sequence, head] = weights @ rows[1].double()
        return result.flatten(1) + 1


@pytest.mark.parametrize("paged", [True, False])
@pytest.mark.parametrize("update_first", [True, False])
def test_a_task_group_takes_new_lengths(paged, update_first):
    decoder = PagedDecoder(paged)
    for lengths in ([3, 20], [4, 21], [32, 1]):
        decoder.x.copy_(torch.randn(2, 4, 8))
        before = decoder.y.clone()
        steps = [lambda: decoder.update(lengths), decoder.graph.replay]  # noqa: B023
        first, second = steps if update_first else steps[::-1]
        first()
        assert torch.equal(decoder.y, before)  # an update computes nothing, a replay waits for it
        second()
        torch.testing.assert_close(decoder.y.double(), decoder.expected(lengths), rtol=1e-5, atol=1e-5)
    if not update_first:
        decoder.graph.replay()
        with pytest.raises(RuntimeError, match="the last replay waits for an ExternalEvent that nobody recorded"):
            decoder.graph.replay()


def test_an_event_leaves_a_graph_alone_that_was_reset_while_it_waited():
    event, graph, x = torch.npu.ExternalEvent(), torch.npu.NPUGraph(), torch.zeros(2, device="npu")
    with torch.npu.graph(graph):
        event.wait()
        x.add_(1)
    graph.replay()
    graph.reset()
    event.record()
    assert x.tolist() == [0, 0]


def test_wrong_orders_of_task_groups():
    decoder, stream = PagedDecoder(paged=False), torch.npu.current_stream()
    x = torch.ones(2, 8, device="npu")
    for call in (torch.npu.graph_task_group_begin, torch.npu.graph_task_group_end, torch.npu.graph_task_update_end):
        with pytest.raises(RuntimeError, match=call.__name__):
            call(stream)
    torch.npu.graph_task_update_begin(stream, decoder.handle)
    with pytest.raises(RuntimeError, match="wants no capture and no other update"):
        torch.npu.graph_task_update_begin(stream, decoder.handle)
    with pytest.raises(RuntimeError, match="the task group does not call npu.npu_swiglu.default here"):
        torch_npu.npu_swiglu(x)
    with pytest.raises(RuntimeError, match="1 tasks of the group were given no arguments"):
        torch.npu.graph_task_update_end(stream)
    with pytest.raises(RuntimeError, match="a task group was not ended"), torch.npu.graph(torch.npu.NPUGraph()):
        torch.npu.graph_task_group_begin(stream)
        y = torch_npu.npu_swiglu(x)
    assert torch_npu.npu_swiglu(x).shape == y.shape


def test_tasks_with_results_of_their_own():
    x, stream = torch.zeros(2, 8, device="npu"), torch.npu.current_stream()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        torch.npu.graph_task_group_begin(stream)
        y = torch_npu.npu_swiglu(x * 2)
        handle = torch.npu.graph_task_group_end(stream)
    x.fill_(1)
    graph.replay()
    torch.testing.assert_close(y, torch_npu.npu_swiglu(torch.full((2, 8), 2.0)))
    torch.npu.graph_task_update_begin(stream, handle)
    torch_npu.npu_swiglu(x)
    torch.npu.graph_task_update_end(stream)
    graph.replay()
    torch.testing.assert_close(y, torch_npu.npu_swiglu(torch.ones(2, 8)))


def test_graphed_callables_train_as_their_callables():
    model, x = torch.nn.Linear(4, 2).npu(), torch.randn(3, 4, device="npu")
    graphed, function = torch.npu.make_graphed_callables((model, torch.sigmoid), ((x,), (torch.zeros(3, 2),)))
    function(graphed(x)).sum().backward()
    got, model.weight.grad = model.weight.grad, None
    torch.sigmoid(model(x)).sum().backward()
    assert torch.equal(got, model.weight.grad)
    assert torch.npu.make_graphed_callables(model, (x,)) is model
    with pytest.raises(RuntimeError, match="make_graphed_callables: sample_args must be tensors, got int"):
        torch.npu.make_graphed_callables(model, (3,))
    model.register_forward_hook(print)
    with pytest.raises(RuntimeError, match="modules must have no hooks yet"):
        torch.npu.make_graphed_callables(model, (x,))
