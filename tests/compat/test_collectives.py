# SPDX-License-Identifier: Apache-2.0
"""torch.distributed on npu: each program runs as two processes, as torchrun starts them."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run_on_two_ranks(folder, text, *arguments):
    program = folder / "program.py"
    program.write_text(text)
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program), *arguments)
    command = [sys.executable, "-m", "anynpu", "run", "-m", *launch]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr


PROGRAM = """
import sys
import torch, torch_npu
import torch.distributed as dist

backend = sys.argv[1]
if "nccl" in backend:
    from torch_npu.contrib import transfer_to_npu
dist.init_process_group(*[] if backend == "none" else [backend])
assert dist.is_hccl_available()
rank = dist.get_rank()
torch.npu.set_device(rank)
assert torch.npu.device_count() == 2 and torch.npu.current_device() == rank
x = torch.full((2,), 1.0 + rank, device=f"npu:{rank}")
dist.all_reduce(x)
assert x.tolist() == [3, 3]
rows = torch.zeros(4).npu()
dist.all_gather_into_tensor(rows, torch.full((2,), float(rank)).npu())
assert rows.tolist() == [0, 0, 1, 1]
part = torch.zeros(1, dtype=torch.bfloat16).npu()
dist.reduce_scatter_tensor(part, torch.tensor([1.0, 2.0], dtype=torch.bfloat16).npu())
assert part.tolist() == [2 + 2 * rank]
sent = torch.zeros(2).npu()
dist.all_to_all_single(sent, torch.arange(2.0).npu() + 10 * rank)
assert sent.tolist() == [rank, 10 + rank]
objects = [None, None]
dist.all_gather_object(objects, {"rank": rank})
assert objects == [{"rank": 0}, {"rank": 1}]
group = dist.new_group([0, 1], backend="nccl" if "nccl" in backend else "hccl")
dist.broadcast(x, 0, group=group)
dist.barrier(device_ids=[0])
layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1, bias=False).npu(), device_ids=[0])
layer(torch.full((1, 2), float(rank)).npu()).sum().backward()
assert layer.module.weight.grad.tolist() == [[0.5, 0.5]]
dist.destroy_process_group()
"""


@pytest.mark.parametrize("backend", ["hccl", "none", "cpu:gloo,npu:hccl", "nccl"])
def test_two_processes(tmp_path, backend):
    run_on_two_ranks(tmp_path, PROGRAM, backend)


PRODUCTS = """
import torch, torch_npu
import torch.distributed as dist

dist.init_process_group("hccl")
rank = dist.get_rank()
group = dist.new_group([0, 1])
names = [g._get_backend(torch.device("npu")).get_hccl_comm_name(rank) for g in (dist.group.WORLD, group)]
assert names[0] != names[1]

def integers(low, high, *shape, seed):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).npu()

x, weight = integers(-9, 9, 2, 3, 16, seed=rank), integers(-8, 8, 16, 8, seed=2 + rank)
both = [(integers(-9, 9, 2, 3, 16, seed=i), integers(-8, 8, 16, 8, seed=2 + i)) for i in (0, 1)]
sums = sum(a.double() @ b.double() for a, b in both)
product = torch_npu.npu_mm_all_reduce_base(x.half(), weight.half(), names[1], bias=torch.ones(8).half().npu())
assert product.dtype == torch.float16 and torch.equal(product.double(), sums + 2)
scale = torch.full((8,), 0.5).npu()
operands = x.flatten(0, 1).to(torch.int8), weight.to(torch.int8)
codes = torch_npu.npu_mm_all_reduce_base(*operands, names[0], dequant_scale=scale)
assert codes.dtype == torch.float16 and torch.equal(codes.double(), sums.flatten(0, 1) / 2)
packed = torch_npu.npu_convert_weight_to_int4pack(weight.int())
weight_only = torch_npu.npu_mm_all_reduce_base(x.half(), packed, names[0], antiquant_scale=scale.half())
assert torch.equal(weight_only.double(), sums / 2)
twice = lambda a, b: torch_npu.npu_mm_all_reduce_base(a, b, names[0]) * 2
compiled = torch.compile(twice, backend="npu", fullgraph=True)
assert torch.equal(compiled(x.half(), weight.half()).double(), sums * 2)
graph, static, total = torch.npu.NPUGraph(), torch.zeros_like(x).half(), torch.zeros(1).npu()
with torch.npu.graph(graph):
    replayed = twice(static, weight.half())
    dist.all_reduce(total)
static.copy_(x), total.fill_(rank + 1)
graph.replay()
assert torch.equal(replayed.double(), sums * 2) and total.item() == 3

# Rows of the sum for each rank; rows of all ranks times this rank's weight.
tall = [a.flatten(0, 1) for a, _ in both]
products = [a.double() @ b.double() for a, (_, b) in zip(tall, both)]
part = torch_npu.npu_mm_reduce_scatter_base(tall[rank].half(), weight.half(), names[0], 2, comm_mode="aiv")
assert part.dtype == torch.float16 and torch.equal(part.double(), sum(products).chunk(2)[rank])
every = torch.cat(tall)
y, rows = torch_npu.npu_all_gather_base_mm(
    tall[rank].bfloat16(), weight.bfloat16(), names[1], 2, bias=torch.ones(8).bfloat16().npu()
)
exact = every.double() @ weight.double() + 1
assert torch.equal(rows.double(), every.double()) and torch.equal(y, exact.bfloat16())
per_token = [torch.arange(1.0, 7)[:, None] * 2.0**-i for i in (0, 1)]
int8 = {"x2_scale": scale[None]}
pair = tall[rank].to(torch.int8), weight.to(torch.int8)
y, rows = torch_npu.npu_all_gather_base_mm(*pair, names[0], 2, x1_scale=per_token[rank], gather_output=False, **int8)
exact = every.double() @ weight.double() * torch.cat(per_token).double() / 2
assert rows.numel() == 0 and torch.equal(y, exact.bfloat16())
part = torch_npu.npu_mm_reduce_scatter_base(
    *pair, names[0], 2, x1_scale=per_token[rank], output_dtype=torch.float16, **int8
)
exact = sum((a * b.double() / 2).half() for a, b in zip(products, per_token))
assert torch.equal(part, exact.chunk(2)[rank])
words = torch_npu.npu_trans_quant_param(scale)[None]
part = torch_npu.npu_mm_reduce_scatter_base(*pair, names[0], 2, x2_scale=words)
assert part.dtype == torch.float16 and torch.equal(part.double(), sum(products).chunk(2)[rank] / 2)
part = torch_npu.npu_mm_reduce_scatter_base(*pair, names[0], 2, x2_scale=scale, output_dtype=torch.bfloat16)
assert torch.equal(part, sum((a / 2).bfloat16() for a in products).chunk(2)[rank])
for options, text in (
    ({"world_size": 3}, "world_size must be that of hcom, 2, got 3"),
    ({"comm_turn": 1}, "comm_turn must be 0, got 1"),
    ({"x2_scale": words, "x1_scale": per_token[0]}, "x1_scale is for float32 x2_scale"),
    ({"x2_scale": scale[:4]}, "x2_scale must have shape (1, 8) or (8,), got (4,)"),
    ({"bias": scale.half()}, "bias is for modes"),
):
    try:
        torch_npu.npu_mm_reduce_scatter_base(*pair, **{"hcom": names[0], "world_size": 2} | options)
    except RuntimeError as error:
        assert text in str(error), error
    else:
        raise AssertionError(text)

refused = (({"reduce_op": "max"}, "reduce_op must be 'sum', got 'max'"), ({"x3": product}, "x3 is for modes"))
for options, text in refused:
    try:
        torch_npu.npu_mm_all_reduce_base(x.half(), weight.half(), names[0], **options)
    except RuntimeError as error:
        assert text in str(error)
    else:
        raise AssertionError(text)
dist.destroy_process_group()
"""


def test_products_summed_over_ranks(tmp_path):
    run_on_two_ranks(tmp_path, PRODUCTS)


SHARDS = """
import copy
import torch, torch_npu
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("hccl")
mesh = dist.init_device_mesh("npu", (2,))
product = distribute_tensor(torch.ones(4, 4).npu(), mesh, [Shard(0)]) @ distribute_tensor(torch.ones(4, 4), mesh)
assert product.full_tensor().sum() == 64
torch.manual_seed(0)
whole = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).npu()
sharded, wrapped = copy.deepcopy(whole), copy.deepcopy(whole)
for layer in sharded:
    fully_shard(layer, mesh=mesh)
fully_shard(sharded)  # with the mesh of the accelerator
x = torch.randn(2, 4).npu()
for model in (whole, sharded):
    model(x).square().sum().backward()
assert torch.equal(whole(x), sharded(x))
assert torch.equal(whole[0].weight.grad, sharded[0].weight.grad.full_tensor())
torch.optim.AdamW(sharded.parameters()).step()
for device in (None, dist.get_rank(), torch.device("npu")):
    flat = FullyShardedDataParallel(copy.deepcopy(wrapped), device_id=device)
    flat(x).square().sum().backward()
    torch.optim.SGD(flat.parameters(), lr=1.0).step()
    for name, weight in flat.state_dict().items():
        assert torch.equal(weight, whole.get_parameter(name) - whole.get_parameter(name).grad)
dist.destroy_process_group()
"""


def test_sharded_modules_and_tensors(tmp_path):
    run_on_two_ranks(tmp_path, SHARDS)


SYNC_BATCH_NORM = """
import torch, torch_npu
import torch.distributed as dist

dist.init_process_group("hccl")
rank = dist.get_rank()
torch.manual_seed(0)
whole = torch.randn(5, 3, 4, dtype=torch.float64) + 100
cases = [({}, [2, 3]), ({"momentum": None, "affine": False}, [1, 4]), ({"track_running_stats": False}, [4, 1])]
for options, rows in cases:
    plain = torch.nn.BatchNorm1d(3, dtype=torch.float64, **options)
    layer = torch.nn.BatchNorm1d(3, dtype=torch.float64, **options)
    layer = torch.nn.SyncBatchNorm.convert_sync_batchnorm(layer).npu()
    for _ in range(2):
        x, part = whole.clone().requires_grad_(), whole.split(rows)[rank].npu().requires_grad_()
        y, normalised = plain(x), layer(part)
        (y**3).sum().backward()
        (normalised**3).sum().backward()
        torch.testing.assert_close(normalised, y.split(rows)[rank])
        torch.testing.assert_close(part.grad, x.grad.split(rows)[rank])
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)
    if layer.affine:
        dist.all_reduce(layer.weight.grad)
        torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    if layer.track_running_stats:
        torch.testing.assert_close(layer.eval()(part), plain.eval()(x).split(rows)[rank])
layer = torch.nn.SyncBatchNorm(3).npu()
assert layer(whole[:2].bfloat16().npu()).dtype == torch.bfloat16
dist.destroy_process_group()
"""


def test_batch_norm_over_both_ranks_is_that_of_the_whole_batch(tmp_path):
    run_on_two_ranks(tmp_path, SYNC_BATCH_NORM)
