# SPDX-License-Identifier: Apache-2.0
"""The device name npu over the CPU."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch_npu

FACTORIES = {
    "zeros": lambda device: torch.zeros(3, device=device),
    "empty": lambda device: torch.empty(3, device=device),
    "full": lambda device: torch.full((2, 3), 4.0, device=device),
    "randn": lambda device: torch.randn(3, device=device),
    "randint": lambda device: torch.randint(0, 5, (3,), device=device),
    "arange": lambda device: torch.arange(5, device=device),
    "eye": lambda device: torch.eye(3, device=device),
    "tensor": lambda device: torch.tensor([1, 2], device=device),
    "as_tensor": lambda device: torch.as_tensor([1, 2], device=device),
    "asarray": lambda device: torch.asarray([1, 2], device=device),
    "zeros_like": lambda device: torch.zeros_like(torch.ones(3), device=device),
    "new_tensor": lambda device: torch.ones(3).new_tensor([1.0], device=device),
    "new_zeros": lambda device: torch.ones(3).new_zeros(2, device=device),
    "empty_strided": lambda device: torch.empty_strided((2, 3), (1, 2), device=device),
    "generator": lambda device: torch.rand(3, device=device, generator=torch.Generator(device=device)),
    "linear": lambda device: torch.nn.Linear(3, 2, device=device).weight,
    "to": lambda device: torch.ones(3).to(device),
    "to keyword": lambda device: torch.ones(3).to(device=device, dtype=torch.float16),
    "to dtype": lambda device: torch.ones(3).to(device, torch.float16, non_blocking=True),
    "npu": lambda device: torch.ones(3).npu(device),
    "module to": lambda device: torch.nn.Linear(3, 2).to(device).bias,
    "storage": lambda device: torch.zeros(2).set_(torch.UntypedStorage(8, device=device)),
}


@pytest.mark.parametrize("device", ["npu", "npu:0", torch.device("npu"), torch.device("npu", 0)], ids=repr)
@pytest.mark.parametrize("name", FACTORIES)
def test_tensors_on_npu_are_ordinary_cpu_tensors(name, device):
    tensor = FACTORIES[name](device)
    assert type(tensor) in (torch.Tensor, torch.nn.Parameter)
    assert tensor.device == torch.device("cpu")
    assert tensor.is_npu
    assert torch.equal(tensor + 0, tensor) or tensor.isnan().any()


def test_a_device_that_is_not_there_is_refused():
    for call in (lambda: torch.zeros(3, device="npu:1"), lambda: torch.ones(3).npu(1), lambda: torch.npu.set_device(7)):
        with pytest.raises(RuntimeError, match=r"device index must be below the device count, 1, got [17]"):
            call()


def test_the_runtime_refuses_other_devices():
    for call in (torch.npu.synchronize, torch.npu.Stream, torch.npu.set_device, torch.npu.current_stream):
        with pytest.raises(
            RuntimeError, match="device index must be below the device count, 1, got 1; ANYNPU_DEVICE_C"
        ):
            call("npu:1")
    with pytest.raises(RuntimeError, match="device must be npu or an index, got cpu"):
        torch.npu.set_device("cpu")


def test_the_runtime_takes_the_device_of_a_tensor():
    device = torch.ones(1, device="npu").device
    torch.npu.synchronize(device)
    assert torch.npu.current_stream(device) is torch.npu.default_stream(device) is torch.npu.default_stream(0)
    with torch.npu.device(device):
        assert torch.npu.current_device() == 0


def test_default_device_and_context():
    torch.set_default_device("npu")
    try:
        assert torch.zeros(2).is_npu
    finally:
        torch.set_default_device(None)
    with torch.device("npu"):
        assert torch.ones(2).npu().is_npu


def test_host_to_device_copies_and_device_to_device_does_not():
    host = torch.ones(4)
    device = host.npu()
    device.add_(1)
    assert host.tolist() == [1, 1, 1, 1]
    for same in (device.npu(), device.to("npu"), device.to(torch.device("npu:0")), device.to(0)):
        assert same is device
    view = device[1:].npu()
    view.zero_()
    assert device.tolist() == [2, 0, 0, 0]


def test_device_to_host_copies():
    device = torch.zeros(3, device="npu") + 1  # the result of an operator, which nothing marks
    for host in (device.cpu(), device.to("cpu"), device.to(device="cpu")):
        host.zero_()
    assert device.tolist() == [1, 1, 1]
    assert device.to(device.device) is device


def test_a_copy_on_the_host_stays_there():
    host = torch.zeros(3, device="npu").cpu()
    assert host.cpu() is host.to("cpu") is host
    parameter = torch.nn.Parameter(host)  # accelerate relies on it when it offloads a model
    assert parameter.to("cpu") is parameter
    assert host.npu() is not host
    meta = torch.nn.Parameter(host.to("meta"))
    assert meta.to("meta") is meta


def test_copies_keep_strides_and_gradients():
    host = torch.randn(8, 4).t().requires_grad_()
    device = host.npu()
    assert device.stride() == host.stride()
    device.square().sum().backward()
    torch.testing.assert_close(host.grad, 2 * host.detach(), rtol=0, atol=0)


def test_sparse_meta_and_functional_tensors():
    assert torch.eye(3).to_sparse().npu().is_npu
    assert not torch.empty(3, device="meta").is_npu
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        torch.empty(3, device="meta").npu()
    assert torch.equal(torch.vmap(lambda row: row.npu() * 2)(torch.ones(2, 3)), torch.full((2, 3), 2.0))


def test_modules_and_optimisers():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model = model.npu()
    assert model[0].weight is model[1].weight
    address = model[0].weight.data_ptr()
    assert model.to("npu")[0].weight.data_ptr() == address
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 4, device="npu")).sum().backward()
    optimiser.step()
    assert copy.deepcopy(model).npu()(torch.zeros(1, 4)).shape == (1, 4)


@pytest.mark.parametrize("name", ["Adadelta", "Adam", "AdamW", "RMSprop", "SGD"])
def test_fused_optimisers_are_those_of_torch(name):
    ours, theirs = (torch.ones(3, device="npu", requires_grad=True) for _ in range(2))
    classes = getattr(torch_npu.optim, f"NpuFused{name}"), getattr(torch.optim, name)
    for parameter, optimiser in zip((ours, theirs), classes, strict=True):
        parameter.grad = torch.tensor([0.0, -1.0, 2.0])
        optimiser([parameter], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(ours, theirs) and not torch.equal(ours, torch.ones(3))


@pytest.mark.parametrize("length, options, moved", [
    (5, {}, 0.5),  # lr times the norm of the weights
    (30, {}, 1.0),  # which counts up to 10
    (5, {"weight_decay": 0.3}, 0.5),
    (0, {}, 0.1 * 10**0.5 * 2**0.5),  # the step itself: 0.1 / 0.001 ** 0.5 for each of two weights
    (5, {"adam": True}, 0.1 * 10**0.5 * 2**0.5),
    (5, {"adam": True, "use_global_grad_norm": True}, 0.1 * 10**0.5 * 2**0.5),
    (5, {"adam": True, "use_global_grad_norm": True, "eps": 1e9}, 1e-10 * 0.1),  # in which the gradient's norm is 1
    (5, {"adam": True, "eps": 1e9}, 1e-10 * 0.5),
])  # fmt: skip
def test_lamb_moves_by_the_norm_of_the_weights(length, options, moved):
    start = torch.tensor([0.6, 0.8], dtype=torch.float64, device="npu") * length
    weights = start.clone().requires_grad_()
    weights.grad = torch.tensor([3.0, -4.0], dtype=torch.float64)
    optimiser = torch_npu.optim.NpuFusedLamb([weights], lr=0.1, **{"eps": 0.0, **options})
    assert optimiser.step(lambda: 7) == 7
    # eps of 1e9 leaves out a part of 2e-10 of the step, and weights of about 1 round by 1e-16 what moves them by 1e-11.
    assert (weights - start).norm().item() == pytest.approx(moved, rel=1e-4 if "eps" in options else 1e-9)


def test_lamb_remembers_gradients():
    weights = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch_npu.optim.NpuFusedLamb([weights], lr=1.0, betas=(0.5, 0.75), eps=0.0, adam=True)
    for gradient in (1.0, 2.0):
        weights.grad = torch.full_like(weights, gradient)
        optimiser.step()
    assert weights.item() == pytest.approx(-0.5 / 0.25**0.5 - 1.25 / 1.1875**0.5, rel=1e-12)
    assert optimiser.state_dict()["state"][0]["step"] == 2
    with pytest.raises(ValueError, match=r"betas in \[0, 1\), got lr 0.1, eps 1e-06, betas \(1, 0.5\)"):
        torch_npu.optim.NpuFusedLamb([weights], lr=0.1, betas=(1, 0.5))


def test_fused_optimisers_clip_gradients():
    weights = torch.zeros(2, requires_grad=True)
    weights.grad = torch.tensor([3.0, 4.0])
    assert torch_npu.optim.NpuFusedAdamW([weights]).clip_grad_norm_fused_(1.0) == 5
    assert weights.grad.norm().item() == pytest.approx(1, rel=1e-5)


def test_autocast():
    layer, x = torch.nn.Linear(4, 4).npu(), torch.randn(2, 4, device="npu")
    with torch.autocast("npu"):
        assert layer(x).dtype == torch.float16
        assert torch.is_autocast_enabled("npu") and torch.get_autocast_dtype("npu") == torch.float16
    assert not torch.is_autocast_enabled("npu")
    with torch.autocast(device_type="npu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.npu.amp.autocast():
        assert layer(x).dtype == torch.float16
    assert layer(x).dtype == torch.float32


def test_save_and_load(tmp_path):
    torch.save({"weight": torch.arange(3, device="npu")}, tmp_path / "a.pt")
    for location in ("npu", "npu:0", torch.device("npu"), None):
        assert torch.load(tmp_path / "a.pt", map_location=location)["weight"].tolist() == [0, 1, 2]
    loaded = torch.load(tmp_path / "a.pt", map_location="npu")["weight"]
    assert loaded.npu() is loaded


def test_load_with_a_function_that_moves_storages(tmp_path):
    kept = torch.arange(3.0)
    torch.save(kept, tmp_path / "kept.pt")
    loaded = torch.load(tmp_path / "kept.pt", map_location=lambda storage, location: storage.npu(0))
    assert torch.equal(loaded, kept) and loaded.npu() is loaded
    with pytest.raises(RuntimeError, match="device index must be below the device count, 1, got 1"):
        kept.untyped_storage().npu(1)


def test_data_parallel_runs_the_module():
    model = torch.nn.DataParallel(torch.nn.Linear(3, 2).npu(), device_ids=[0], output_device="npu:0")
    x = torch.ones(4, 3, device="npu")
    assert torch.equal(model(x), model.module(x))
    with pytest.raises(RuntimeError, match="device index must be below the device count, 1, got 1"):
        torch.nn.DataParallel(torch.nn.Linear(3, 2), device_ids=[0, 1])


def test_data_loader_with_pinned_memory():
    (batch,) = torch.utils.data.DataLoader(torch.ones(4, 2), batch_size=4, pin_memory=True)
    assert batch.tolist() == torch.ones(4, 2).tolist()
    assert torch.ones(2).pin_memory().npu().is_npu


PINNED = {
    "empty": lambda: torch.empty(3, pin_memory=True),
    "zeros": lambda: torch.zeros(2, 3, dtype=torch.int8, device="cpu", pin_memory=True),
    "tensor": lambda: torch.tensor([1, 2], pin_memory=True),
    "empty_like": lambda: torch.empty_like(torch.ones(3), pin_memory=True),
    "new_zeros": lambda: torch.ones(3).new_zeros(4, pin_memory=True),
    "in a device context": lambda: in_context(lambda: torch.ones(3, pin_memory=True)),
}


def in_context(make):
    with torch.device("npu"):
        return make()


@pytest.mark.parametrize("name", PINNED)
def test_pinned_memory(name):
    made = PINNED[name]()
    assert made.is_pinned() and made[:1].is_pinned() and made.pin_memory() is made
    assert not made.npu().is_pinned()


def test_pinning_copies():
    x = torch.ones(2)
    assert not torch.empty(3, pin_memory=False).is_pinned() and not x.is_pinned()
    pinned = x.pin_memory()
    pinned.zero_()
    assert x.tolist() == [1, 1]


def test_generators():
    first = torch.rand(3, device="npu", generator=torch.Generator("npu").manual_seed(5))
    second = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, second)
    assert isinstance(torch.default_generator, torch.Generator)
    copied = pickle.loads(pickle.dumps(torch.Generator("npu").manual_seed(5)))
    assert torch.equal(torch.rand(3, generator=copied), first)
    torch.npu.manual_seed_all(7)
    drawn = torch.rand(3, device="npu")
    torch.npu.manual_seed(7)
    assert torch.equal(torch.rand(3, device="npu"), drawn)
    state = torch.npu.get_rng_state()
    drawn = torch.rand(3)
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.rand(3), drawn)
    with torch.random.fork_rng(device_type="npu"):
        torch.rand(3)
    torch.npu.random.set_rng_state(state)  # the Trainer of transformers looks for the states here
    assert torch.equal(torch.rand(3), drawn) and len(torch.npu.random.get_rng_state_all()) == 1


def test_runtime():
    assert torch.npu.is_available() and torch.npu.device_count() == 1 and torch.npu.current_device() == 0
    assert torch.npu.get_device_name() == torch.npu.get_device_name(0) == "Ascend910B"
    assert torch.npu.get_soc_version() == 220
    torch.npu.set_device("npu:0")
    torch.npu.synchronize()
    torch.npu.empty_cache()
    free, total = torch.npu.mem_get_info()
    assert 0 < free <= total == torch.npu.get_device_properties(0).total_memory
    assert 0 < torch.npu.memory_allocated() <= torch.npu.max_memory_allocated() <= total
    assert torch.npu.memory_reserved() > 0 and torch.npu.memory.max_memory_reserved() > 0
    torch.npu.set_compile_mode(jit_compile=False)
    assert torch.npu.is_jit_compile_false()
    torch.npu.config.allow_internal_format = False
    torch.accelerator.synchronize()
    if hasattr(torch.accelerator, "empty_host_cache"):  # torch 2.10 and newer
        torch.accelerator.empty_host_cache()
    assert torch.accelerator.memory_allocated() > 0
    torch.accelerator.set_device_index(0)
    with torch.accelerator.device_index(0):
        assert torch.accelerator.current_device_index() == 0
    assert torch.npu.get_device_properties().multi_processor_count > 0
    assert torch.get_device_module("npu") is torch.npu


def test_memory_as_a_table_and_limits():
    assert "allocated_bytes.all.peak" in torch.npu.memory_summary(device="npu:0", abbreviated=True)
    assert torch.npu.memory_stats()["num_ooms"] == 0
    torch.npu.set_per_process_memory_fraction(0.5)
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\], got 1.5"):
        torch.npu.set_per_process_memory_fraction(1.5)
    with pytest.raises(TypeError, match="fraction must be a float, got int"):
        torch.npu.set_per_process_memory_fraction(1)
    assert 0 <= torch.npu.utilization(0) <= 100
    assert torch.npu.ipc_collect() is None


def test_pools_of_memory_are_names():
    pool, other = torch.npu.MemPool(), torch.npu.memory.MemPool(use_on_oom=True)
    assert pool.id != other.id
    assert pool.snapshot() == torch.npu.memory_snapshot() == []
    with torch.npu.use_mem_pool(pool, "npu:0"):
        made = torch.ones(2, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, pool=pool.id):
        made.add_(1)
    assert graph.pool() == pool.id
    with pytest.raises(NotImplementedError, match="MemPool: allocator, from which memory would come"):
        torch.npu.MemPool(object())
    with (
        pytest.raises(TypeError, match="use_mem_pool: pool must be a MemPool, got tuple"),
        torch.npu.use_mem_pool(pool.id),
    ):
        pass
    with pytest.raises(RuntimeError, match="device index must be below"), torch.npu.use_mem_pool(pool, 1):
        pass


def test_modules_of_streams_and_graphs():
    from torch_npu.npu import graphs, streams

    assert streams is torch.npu.streams
    assert graphs is torch.npu.graphs
    assert streams.Event is torch.npu.Event
    assert streams.ExternalEvent is torch.npu.ExternalEvent
    assert graphs.NPUGraph is torch.npu.NPUGraph
    assert graphs.graph_task_update_end is torch.npu.graph_task_update_end
    with pytest.raises(AttributeError, match="torch_npu.npu.graphs.NpuGraphOpHandler is not implemented by anynpu"):
        graphs.NpuGraphOpHandler  # noqa: B018


def test_legacy_tensor_types():
    assert torch.equal(torch.npu.FloatTensor([1, 2]), torch.tensor([1.0, 2.0], device="npu"))
    assert torch.npu.HalfTensor(2, 3).shape == (2, 3)
    assert isinstance(torch.zeros(2, dtype=torch.int64, device="npu"), torch.npu.LongTensor)


def test_marks_of_the_profiling_tools():
    first, second = torch.npu.mstx.range_start("step"), torch.npu.mstx.range_start("step")
    assert first != second and torch.npu.mstx.range_end(first) is None
    assert torch.npu.mstx.mark("here", torch.npu.current_stream()) is None
    assert torch.npu.mstx.mstx_range("double")(lambda x: 2 * x)(3) == 6


def test_autocast_casts_inputs_of_functions():
    class Double(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="npu", cast_inputs=torch.float32)
        def forward(ctx, x):
            assert not torch.is_autocast_enabled("npu")
            return 2 * x

        @staticmethod
        @torch.amp.custom_bwd(device_type="npu")
        def backward(ctx, gradient):
            return 2 * gradient

    x = torch.ones(2, dtype=torch.float16, device="npu", requires_grad=True)
    with torch.npu.amp.autocast():
        doubled = Double.apply(x)
    doubled.sum().backward()
    assert doubled.dtype == torch.float32 and x.grad.tolist() == [2, 2]


def test_autocast_switches():
    assert not torch.npu.is_autocast_enabled()
    with torch.npu.amp.autocast(dtype=torch.bfloat16):
        assert torch.npu.is_autocast_enabled() and torch.npu.get_autocast_dtype() == torch.bfloat16
    before = torch.npu.get_autocast_dtype()
    torch.npu.set_autocast_dtype(torch.float16)
    torch.npu.set_autocast_enabled(True)
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16
    torch.npu.set_autocast_enabled(False)
    torch.npu.set_autocast_dtype(before)


def test_threads():
    failures = []

    def work():
        for _ in range(20):
            x = torch.randn(8, 8, device="npu", requires_grad=True)
            (x.npu() @ x).sum().backward()
            if x.grad is None or not x.grad.is_npu:
                failures.append(x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def with_autocast(x):
    with torch.autocast("npu", dtype=torch.float16):
        return x @ x


IN_A_GRAPH = {
    "zeros": lambda x: x + torch.zeros(3, device="npu"),
    "device object": lambda x: x + torch.ones(3, device=torch.device("npu", 0)),
    "tensor": lambda x: x + torch.tensor([1.0, 2, 3], device="npu"),
    "to": lambda x: x.to("npu") * 2,
    "to keyword": lambda x: x.to(device="npu:0", dtype=torch.float64) * 2,
    "npu and cpu": lambda x: x.npu(0).cpu() * 2,
    "is_npu": lambda x: x + 1 if x.is_npu else x,
    "device of a tensor": lambda x: x + torch.arange(3, device=x.device),
    "runtime": lambda x: x + 1 if torch.npu.is_available() else x,
    "autocast": with_autocast,
    "pinned": lambda x: x + torch.ones(3, pin_memory=True).npu(),
}


@pytest.mark.parametrize("name", IN_A_GRAPH)
def test_graph_capture(name):
    x = torch.randn(3, 3)
    torch.compiler.reset()
    compiled = torch.compile(IN_A_GRAPH[name], backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(x), IN_A_GRAPH[name](x), rtol=0, atol=0)


def test_inductor_compiles_code_that_names_npu():
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x: (x.npu() + torch.ones(3, device="npu")).to("npu:0"), fullgraph=True, dynamic=True
    )
    assert compiled(torch.ones(2, 3)).tolist() == [[2, 2, 2]] * 2


def test_symbolic_trace_and_export():
    class Model(torch.nn.Module):
        def forward(self, x):
            return x.npu() + torch.ones(3, device="npu")

    x = torch.ones(3)
    assert torch.equal(torch.export.export(Model(), (x,), strict=True).module()(x), Model()(x))
    assert torch.equal(torch.fx.symbolic_trace(lambda x: x + torch.ones(3, device="npu"))(x), x + 1)
