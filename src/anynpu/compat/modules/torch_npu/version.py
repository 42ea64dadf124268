# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.version``: the version of torch that the shim follows, and that of anynpu behind it."""

from __future__ import annotations

import torch

import anynpu

__version__ = f"{torch.__version__.partition('+')[0]}+anynpu.{anynpu.__version__}"
