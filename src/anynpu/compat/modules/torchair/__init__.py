# SPDX-License-Identifier: Apache-2.0
"""``torchair``: graph mode of torch_npu, on PyTorch's own compilers."""

from __future__ import annotations

import logging

from anynpu.compat.errors import module_getattr, not_implemented
from torchair import configs, inference, scope
from torchair._backend import get_npu_backend
from torchair.configs.compiler_config import CompilerConfig

logger = logging.getLogger("torchair")

dynamo_export = not_implemented("torchair.dynamo_export")
register_fx_node_ge_converter = not_implemented("torchair.register_fx_node_ge_converter")
use_internal_format_weight = not_implemented("torchair.use_internal_format_weight")

__all__ = [
    "CompilerConfig",
    "configs",
    "dynamo_export",
    "get_npu_backend",
    "inference",
    "logger",
    "register_fx_node_ge_converter",
    "scope",
    "use_internal_format_weight",
]

__getattr__ = module_getattr(__name__, globals())
