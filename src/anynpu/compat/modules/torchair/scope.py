# SPDX-License-Identifier: Apache-2.0
"""``torchair.scope``: placement hints for a chip's streams and cores. They can be imported, not used."""

from __future__ import annotations

from anynpu.compat.errors import module_getattr, not_implemented

npu_stream_switch = not_implemented("torchair.scope.npu_stream_switch")
npu_wait_tensor = not_implemented("torchair.scope.npu_wait_tensor")
super_kernel = not_implemented("torchair.scope.super_kernel")
limit_core_num = not_implemented("torchair.scope.limit_core_num")
op_never_timeout = not_implemented("torchair.scope.op_never_timeout")
data_dump = not_implemented("torchair.scope.data_dump")

__getattr__ = module_getattr(__name__, globals())
