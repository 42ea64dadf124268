# SPDX-License-Identifier: Apache-2.0
"""Trains a small model with DistributedDataParallel over hccl, as on cards:

anynpu run -m torch.distributed.run --standalone --nproc-per-node 2 npu_ddp.py
"""

import os

import torch
import torch.distributed as dist
import torch_npu
from torch.nn.parallel import DistributedDataParallel

STEPS = 40


def train() -> None:
    rank = int(os.environ["LOCAL_RANK"])
    torch.npu.set_device(rank)
    dist.init_process_group("hccl")
    device = f"npu:{rank}"
    torch.manual_seed(0)
    truth = torch.randn(16, 4).to(device)
    layers = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.SyncBatchNorm(32), torch.nn.Linear(32, 4))
    model = DistributedDataParallel(layers.to(device), device_ids=[rank])
    optimiser = torch_npu.optim.NpuFusedAdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(rank)  # each process draws data of its own
    for step in range(STEPS):
        x = torch.randn(32, 16, device=device)
        with torch.autocast("npu", dtype=torch.bfloat16):
            y = model(x)
        loss = torch.nn.functional.mse_loss(y.float(), x @ truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        dist.all_reduce(loss.detach(), op=dist.ReduceOp.AVG)
        if rank == 0 and step in (0, STEPS - 1):
            print(f"step {step}: loss {loss.item():.4f}")
    norm = model.module[0].weight.detach().norm()
    norms = [torch.empty_like(norm) for _ in range(dist.get_world_size())]
    dist.all_gather(norms, norm)
    if rank == 0:
        print("the processes have the same weights:", all(torch.equal(norm, other) for other in norms))
    dist.destroy_process_group()


if __name__ == "__main__":
    train()
