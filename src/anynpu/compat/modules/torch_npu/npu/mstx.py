# SPDX-License-Identifier: Apache-2.0
"""``torch.npu.mstx``: marks for the vendor's profiling tools. They are counted, not recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

_ranges = itertools.count(1)


class mstx:
    """Marks and ranges; ``range_start`` gives a number for ``range_end``."""

    @staticmethod
    def mark(message: str, stream: Any = None, domain: str = "default") -> None:
        """Nothing to mark."""

    @staticmethod
    def range_start(message: str, stream: Any = None, domain: str = "default") -> int:
        return next(_ranges)

    @staticmethod
    def range_end(range_id: int, domain: str = "default") -> None:
        """Nothing to end."""

    @staticmethod
    def mstx_range(message: str, stream: Any = None, domain: str = "default") -> Callable[[Callable], Callable]:
        """A decorator for functions whose calls are ranges."""
        return lambda function: function
