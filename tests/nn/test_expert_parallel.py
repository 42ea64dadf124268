# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts across gloo processes gives what one process gives."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from anynpu.nn import ExpertParallelMoE, QuantExperts, QuantMoE
from anynpu.ops.dynamic_quant import dynamic_quant
from anynpu.ops.moe_init_routing import moe_init_routing

ROOT = Path(__file__).parents[2]
HIDDEN, EXPERTS, CHOICES = 64, 6, 3
U = 2.0**-24  # half a unit in the last place of float32
# Tokens of each rank, by the number of ranks.
BATCHES = {1: [(7,), (0,)], 2: [(5, 5), (1, 8), (6, 0), (0, 0)], 4: [(3, 3, 3, 3), (0, 5, 1, 0), (2, 0, 9, 4)]}


def random_experts(experts, intermediate, bits, generator):
    """Experts whose results are about as large as their inputs."""

    def codes(n, k):
        limit = 2 ** (bits - 1)
        values = torch.randint(-limit, limit, (experts, n, k), generator=generator, dtype=torch.int8)
        return values, (torch.rand(experts, n, 1, generator=generator) + 0.5) * (1.7 / limit / k**0.5)

    return QuantExperts.from_codes(codes(2 * intermediate, HIDDEN), codes(HIDDEN, intermediate), bits, 0)


def layer(bits=8, shared=True):
    generator = torch.Generator().manual_seed(bits)
    return QuantMoE.from_experts(
        random_experts(EXPERTS, 32, bits, generator),
        torch.randn(EXPERTS, HIDDEN, generator=generator),
        CHOICES,
        shared=random_experts(1, 40, bits, generator) if shared else None,
        scoring="renormalised",
    )


def tokens(sizes):
    return torch.randn(sum(sizes), HIDDEN, generator=torch.Generator().manual_seed(len(sizes))).split(sizes)


def reordering_bound(moe, x):
    """Twice what adding up k + 1 terms and their products with the weights may round, whatever the order."""
    weights, experts = moe.route(x)
    codes, scale = dynamic_quant(x)
    rows, order, counts, row_scale = moe_init_routing(
        codes, experts, scale=scale, expert_num=EXPERTS, expert_tokens_num_type=1, row_idx_type=1
    )
    results = moe.routed(rows, row_scale, counts, order.long(), None, len(order)).unflatten(0, (len(x), CHOICES))
    magnitude = (results.abs() * weights.unsqueeze(-1)).sum(1).double()
    shared = moe.shared_rows(x, codes, scale)
    return 2 * (CHOICES + 2) * U * (magnitude + (0 if shared is None else shared.double().abs()))


def check(rank, sizes, bits, shared, dispatch):
    moe, batches = layer(bits, shared), tokens(sizes)
    y = ExpertParallelMoE(moe, dispatch=dispatch)(batches[rank])
    expected = moe(torch.cat(batches)).split(sizes)[rank]
    assert y.shape == (sizes[rank], HIDDEN)
    if sizes[rank] == 0:
        return
    bound = reordering_bound(moe, torch.cat(batches)).split(sizes)[rank]
    assert ((y.double() - expected.double()).abs() <= bound).all()
    if len(sizes) == 1 and dispatch == "all_gather":
        assert torch.equal(y, expected)  # the same additions in the same order


def start(rank, ranks, path, timeout=60):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{path}", rank=rank, world_size=ranks, timeout=datetime.timedelta(seconds=timeout)
    )


def worker(rank, ranks, path):
    start(rank, ranks, path)
    for sizes in BATCHES[ranks]:
        for bits, shared in ((8, True), (4, False)):
            for dispatch in ("all_gather", "all_to_all"):
                check(rank, sizes, bits, shared, dispatch)
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", BATCHES)
def test_ranks_give_what_one_process_gives(ranks, tmp_path):
    mp.spawn(worker, (ranks, tmp_path / "store"), nprocs=ranks)


def dying_worker(rank, ranks, path):
    start(rank, ranks, path, timeout=10)
    moe = ExpertParallelMoE(layer())
    moe(tokens((2, 2))[rank])
    if rank == 1:
        os._exit(3)
    try:
        moe(tokens((2, 2))[rank])
    except RuntimeError:
        os._exit(4)
    os._exit(0)


def test_a_rank_that_dies_ends_the_others_with_an_error(tmp_path):
    context = mp.get_context("spawn")
    processes = [context.Process(target=dying_worker, args=(rank, 2, tmp_path / "store")) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [4, 3]


def alone(path):
    start(0, 1, path)
    with pytest.raises(ValueError, match="dispatch must be one of all_gather, all_to_all, got 'broadcast'"):
        ExpertParallelMoE(layer(), dispatch="broadcast")
    text = repr(ExpertParallelMoE(layer()))
    assert "experts [0, 6) of 6, all_gather" in text
    for dispatch in ("all_gather", "all_to_all"):
        x = torch.randn(3, HIDDEN, requires_grad=True)
        with pytest.raises(NotImplementedError, match="quantised experts have no gradient"):
            (x + ExpertParallelMoE(layer(), dispatch=dispatch)(x)).sum().backward()


def test_arguments(tmp_path):
    process = mp.get_context("spawn").Process(target=alone, args=(tmp_path / "store",))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 0


def test_example():
    program = ROOT / "examples" / "python" / "expert_parallel.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "all_gather: the results of one process" in done.stdout
    assert "all_to_all: the results of one process" in done.stdout


WITHOUT_DISTRIBUTED = """
import sys, types, torch
stub = types.ModuleType("torch.distributed")  # as torch makes it in a build without it
stub.is_available = lambda: False
stub.ProcessGroup = stub.GroupName = object
torch.distributed = sys.modules[stub.__name__] = stub
import anynpu
print(anynpu.quantize_(torch.nn.Linear(64, 8), anynpu.W8A8())(torch.ones(2, 64)).shape)
try:
    anynpu.nn.ExpertParallelMoE(None)
except RuntimeError as error:
    print(error)
"""


def test_a_torch_without_distributed():
    done = subprocess.run([sys.executable, "-c", WITHOUT_DISTRIBUTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "torch.Size([2, 8])",
        "ExpertParallelMoE: needs torch.distributed, which this build of torch lacks",
    ]
