# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.dynamo.torchair``: torchair under its second name."""

from __future__ import annotations

import torchair

__all__ = ["torchair"]
