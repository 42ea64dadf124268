# SPDX-License-Identifier: Apache-2.0
"""``torch.distributed`` with the backend ``hccl``: Gloo, for tensors of the device that npu stands for."""

from __future__ import annotations

import functools
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from anynpu.compat import fully_sharded, sync_batch_norm
from anynpu.compat.device import NAME, names_npu, real_device, target

BACKEND = "hccl"


def _make(store: Any, rank: int, world_size: int, timeout: timedelta) -> Any:
    return dist.ProcessGroupGloo(store, rank, world_size, timeout=timeout)


def _serve_real_tensors() -> None:
    """A group for npu serves the real device too, where the tensors are, unless the program named a backend for it.

    Where none is named torch takes the group for Gloo's, unless it is NCCL's. Once transfer_to_npu is imported,
    ``nccl`` is another name of the backend.
    """
    config = dist.distributed_c10d.BackendConfig
    initialise = config.__init__

    @functools.wraps(initialise)
    def mapped(self: Any, backend: str) -> None:
        if backend == dist.Backend.UNDEFINED and target().type == "cpu":
            backend = dist.Backend.GLOO
        initialise(self, str(backend).replace("nccl", BACKEND) if names_npu("cuda") else backend)
        devices = self.device_backend_map
        for name in [device for device in devices if names_npu(device)]:
            devices.setdefault(target().type, devices[name])

    config.__init__ = mapped


def _accept_device_ids() -> None:
    """DistributedDataParallel takes the ids of devices, which it refuses for modules on the CPU."""
    parallel = torch.nn.parallel.DistributedDataParallel
    initialise = parallel.__init__

    @functools.wraps(initialise)
    def mapped(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        for device in [*(device_ids or ()), output_device]:
            if device is not None:
                real_device(device)
        initialise(self, module, None, None, *args, **kwargs)

    parallel.__init__ = mapped


def _run_data_parallel_once() -> None:
    """DataParallel runs the module itself, as it does for the CPU: all devices are the same one."""

    def initialise(self: Any, module: Any, device_ids: Any = None, output_device: Any = None, dim: int = 0) -> None:
        torch.nn.Module.__init__(self)
        for device in [*(device_ids or ()), output_device]:
            if device is not None:
                real_device(device)
        self.module, self.device_ids = module, []

    parallel = torch.nn.DataParallel
    parallel.__init__ = functools.wraps(parallel.__init__)(initialise)


def _mesh_of_real_devices() -> None:
    """A mesh is of the devices where its tensors are: ``fully_shard`` compares the two."""
    initialise = DeviceMesh.__init__

    @functools.wraps(initialise)
    def mapped(self: DeviceMesh, device_type: str, *args: Any, **kwargs: Any) -> None:
        initialise(self, target().type if names_npu(device_type) else device_type, *args, **kwargs)

    DeviceMesh.__init__ = mapped


def _comm_name(self: Any, rank: int, init_comm: bool = True) -> str:
    """The name that operators with a ``group`` or ``hcom`` argument take: that of the group with this backend."""
    for group in dist.distributed_c10d._world.pg_map:
        if group._get_backend(target()) is self:
            return group.group_name
    raise RuntimeError("get_hccl_comm_name: the group of this backend was destroyed")


def provide() -> None:
    """Registers the backend. It cannot be undone."""
    if not dist.is_available() or not dist.is_gloo_available():
        return
    dist.Backend.register_backend(BACKEND, _make, devices=[NAME, target().type])
    dist.is_hccl_available = lambda: True
    dist.ProcessGroupGloo.get_hccl_comm_name = _comm_name
    _serve_real_tensors()
    _mesh_of_real_devices()
    if target().type == "cpu":
        _accept_device_ids()
        _run_data_parallel_once()
        fully_sharded.provide()
        sync_batch_norm.provide()
