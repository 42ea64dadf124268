# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.testing.testcase``: unittest with comparisons of tensors and arrays."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch

from anynpu.compat.errors import module_getattr

_INTEGERS = (np.uint8, np.int8, np.int16, np.int32, np.int64)
# Added to the denominator, so that two zeros have no relative error.
_TINY16 = 6e-8
_TINY = 1e-9


class TestCase(unittest.TestCase):
    """``unittest.TestCase`` whose equality knows tensors."""

    def assertRtolEqual(
        self,
        x: Any,
        y: Any,
        prec: float = 1.0e-4,
        prec16: float = 1.0e-3,
        auto_trans_dtype: bool = False,
        message: str | None = None,
    ) -> None:
        """Tensors, arrays, numbers or sequences of them agree, by the published rule.

        Of ``n`` elements at most ``n * tolerance`` may differ by more than the tolerance, counted either by ``|x - y|``
        or by ``|x - y| / max(|x|, |y|)``, whichever are fewer. The tolerance is ``prec16`` for float16, else ``prec``.
        """
        if isinstance(x, Sequence) and isinstance(y, Sequence) and not isinstance(x, str):
            self.assertEqual(len(x), len(y), message)
            for left, right in zip(x, y, strict=True):
                self.assertRtolEqual(left, right, prec, prec16, auto_trans_dtype, message)
            return
        left, right = _array(x), _array(y)
        if auto_trans_dtype:
            left = left.astype(right.dtype)
        if left.shape != right.shape:
            self.fail(self._formatMessage(message, f"shape error: {left.shape} != {right.shape}"))
        if left.dtype != right.dtype:
            self.fail(self._formatMessage(message, f"dtype error: {left.dtype} != {right.dtype}"))
        self._assert_close(left, right, prec, prec16, message)

    def _assert_close(self, x: np.ndarray, y: np.ndarray, prec: float, prec16: float, message: str | None) -> None:
        if x.dtype == np.bool_:
            x, y = x.astype(np.int32), y.astype(np.int32)
        if x.dtype not in (*_INTEGERS, np.float16, np.float32, np.float64):
            self.fail(self._formatMessage(message, f"no comparison is defined for {x.dtype}"))
        half = x.dtype == np.float16
        tolerance, tiny = (prec16, _TINY16) if half else (prec, _TINY)
        x, y = x.astype(np.float64), y.astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(x - y))
            relative = np.where(same, 0.0, difference / (np.maximum(np.abs(x), np.abs(y)) + tiny))
        # A NaN on one side is not <= the tolerance: it counts.
        count = x.size - max(np.count_nonzero(difference <= tolerance), np.count_nonzero(relative <= tolerance))
        if count > x.size * tolerance:
            worst = np.unravel_index(int(np.argmax(np.nan_to_num(difference, nan=np.inf))), x.shape)
            differing = f"result error: {count} of {x.size} elements differ by more than {tolerance}"
            where = f"the largest difference is at {tuple(map(int, worst))}: {x[worst]} and {y[worst]}"
            self.fail(self._formatMessage(message, f"{differing}, {where}"))

    def assertEqual(self, x: Any, y: Any, prec: float | str | None = None, message: str | None = None) -> None:
        """Equality; with tensors, of shape, dtype and values, within ``prec`` (default 0 for integers, else 1e-5)."""
        if isinstance(prec, str):  # unittest's third argument is the message
            prec, message = None, prec
        if isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor):
            tolerances = {} if prec is None else {"rtol": 0, "atol": prec}
            torch.testing.assert_close(
                torch.as_tensor(x), torch.as_tensor(y), equal_nan=True, check_device=False, msg=message, **tolerances
            )
        elif prec is not None and isinstance(x, Number) and isinstance(y, Number):
            self.assertLessEqual(abs(x - y), prec, message)
        else:
            super().assertEqual(x, y, message)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray | Number | np.generic):
        return np.asarray(value)
    raise TypeError(f"assertRtolEqual: expected tensors, arrays, numbers or sequences, got {type(value).__name__}")


def run_tests(argv: Sequence[str] | None = None) -> None:
    """Runs the tests of the calling script."""
    unittest.main(argv=list(sys.argv if argv is None else argv))


__getattr__ = module_getattr(__name__, globals())
