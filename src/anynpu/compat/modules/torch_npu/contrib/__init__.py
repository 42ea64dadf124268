# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.contrib``: functions and layers of models, and scripts written for CUDA, see ``transfer_to_npu``."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr, public_names
from torch_npu.contrib.function import (
    fuse_add_softmax_dropout,
    matmul_transpose,
    npu_fast_condition_index_put,
    roll,
)
from torch_npu.contrib.module import (
    BiLSTM,
    ChannelShuffle,
    Focus,
    LabelSmoothingCrossEntropy,
    LinearA8W8Quant,
    LinearQuant,
    LinearWeightQuant,
    Mish,
    NpuDropPath,
    Prefetcher,
    SiLU,
    Swish,
)

__all__ = public_names(__name__, globals())

__getattr__ = module_getattr(__name__, globals())
