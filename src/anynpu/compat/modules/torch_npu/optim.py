# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.optim``: the fused optimisers that torch has too, which are torch's."""

from __future__ import annotations

import torch

from anynpu.compat.errors import module_getattr


class NpuFusedAdadelta(torch.optim.Adadelta):
    """:class:`torch.optim.Adadelta`."""


class NpuFusedAdam(torch.optim.Adam):
    """:class:`torch.optim.Adam`."""


class NpuFusedAdamW(torch.optim.AdamW):
    """:class:`torch.optim.AdamW`."""


class NpuFusedRMSprop(torch.optim.RMSprop):
    """:class:`torch.optim.RMSprop`."""


class NpuFusedSGD(torch.optim.SGD):
    """:class:`torch.optim.SGD`."""


__getattr__ = module_getattr(__name__, globals())
