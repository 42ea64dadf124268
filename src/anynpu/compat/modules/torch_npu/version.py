# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.version``: the version of torch that the shim follows, and that of anynpu behind it."""

from __future__ import annotations

import torch

from anynpu._version import __version__ as _anynpu_version

__version__ = f"{torch.__version__.partition('+')[0]}+anynpu.{_anynpu_version}"
