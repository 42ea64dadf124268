# SPDX-License-Identifier: Apache-2.0
"""torch_npu.testing: what test files written for torch_npu import."""

from __future__ import annotations

import unittest

import numpy as np
import pytest
import torch
import torch_npu
from torch_npu.testing.common_utils import SkipIfNotGteCANNVersion, SupportedDevices, create_common_tensor
from torch_npu.testing.decorator import Dtypes, Formats, instantiate_tests
from torch_npu.testing.testcase import TestCase, run_tests

from anynpu.compat import soc

CASE = TestCase()


@pytest.mark.parametrize(
    "x, y",
    [
        (np.float32([1, 2]), np.float32([1.00009, 2])),
        (torch.tensor([1e-9]), torch.tensor([9e-5])),
        (torch.tensor([1000.0]), torch.tensor([1000.09])),
        (np.float16([1]), np.float16([1.0009765625])),
        (torch.tensor([True]), torch.tensor([True])),
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
        (torch.ones(3).bfloat16(), torch.ones(3).bfloat16()),
        (torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")])),
        (1.0, 1.00005),
        ([torch.ones(2), 3], [torch.ones(2), 3]),
        (torch.zeros(20_000), torch.cat([torch.ones(2), torch.zeros(19_998)])),  # 2 = 20 000 * 1e-4 may be off
    ],
)
def test_assert_rtol_equal_accepts(x, y):
    CASE.assertRtolEqual(x, y)


@pytest.mark.parametrize(
    "x, y, text",
    [
        (np.float32([1, 2]), np.float32([1.0003, 2]), r"1 of 2 elements differ by more than 0.0001.*at \(0,\)"),
        (np.float16([1]), np.float16([1.002]), "1 of 1 elements differ by more than 0.001"),
        (torch.tensor([1]), torch.tensor([2]), "1 of 1 elements"),
        (torch.zeros(20_000), torch.cat([torch.ones(3), torch.zeros(19_997)]), "3 of 20000 elements"),
        (torch.tensor([float("nan")]), torch.tensor([1.0]), "1 of 1 elements"),
        (torch.tensor([float("inf")]), torch.tensor([1.0]), "1 of 1 elements"),
        (torch.ones(2), torch.ones(3), r"shape error: \(2,\) != \(3,\)"),
        (torch.ones(2), torch.ones(2).half(), "dtype error: float32 != float16"),
        ([torch.ones(2)], [torch.ones(2), torch.ones(2)], "1 != 2"),
    ],
)
def test_assert_rtol_equal_refuses(x, y, text):
    with pytest.raises(AssertionError, match=text):
        CASE.assertRtolEqual(x, y)


def test_precisions_and_conversion():
    CASE.assertRtolEqual(torch.tensor([1.0]), torch.tensor([1.05]), prec=0.1)
    CASE.assertRtolEqual(torch.tensor([1.0]).half(), torch.tensor([1.05]).half(), prec16=0.1)
    CASE.assertRtolEqual(torch.ones(2), torch.ones(2).half(), auto_trans_dtype=True)
    with pytest.raises(TypeError, match="expected tensors, arrays, numbers or sequences, got dict"):
        CASE.assertRtolEqual({}, {})


def test_assert_equal_knows_tensors():
    CASE.assertEqual(torch.ones(2), torch.ones(2))
    CASE.assertEqual(1.0, 1.05, prec=0.1)
    CASE.assertEqual([1], [1], "message")
    for x, y in ((torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.ones(2).half()), (1, 2)):
        with pytest.raises(AssertionError):
            CASE.assertEqual(x, y)


def test_common_tensors():
    cpu_input, npu_input = create_common_tensor((np.float16, 29, (3, 4)), -1, 1)
    assert torch.equal(cpu_input, npu_input) and cpu_input.dtype == torch.float16
    assert torch_npu.get_npu_format(npu_input) == 29
    assert cpu_input.data_ptr() != npu_input.data_ptr() and cpu_input.abs().max() <= 1
    _, plain = create_common_tensor([np.int32, -1, [5]], 0, 10)
    assert torch_npu.get_npu_format(plain) == 2 and plain.shape == (5,)


def test_supported_devices_follow_the_reported_chip():
    @SupportedDevices(["Ascend910B"])
    def on_a2():
        return "ran"

    @SkipIfNotGteCANNVersion("8.0.RC3")
    @SupportedDevices(["Ascend310P"])
    def on_inference_card():
        return "ran"

    assert on_a2() == "ran"
    with pytest.raises(unittest.SkipTest, match="only for Ascend310P, the reported chip is Ascend910B"):
        on_inference_card()
    before = soc.name()
    soc.choose("Ascend310P3")
    try:
        assert on_inference_card() == "ran" and torch.npu.get_soc_version() == 202
    finally:
        soc.choose(before)


def test_instantiated_tests():
    seen = []

    @instantiate_tests
    class Tests(TestCase):
        @Dtypes(torch.float16, torch.float32)
        @Formats(2, 29)
        def test_add(self, dtype, npu_format):
            seen.append((dtype, npu_format))

    result = unittest.TestLoader().loadTestsFromTestCase(Tests).run(unittest.TestResult())
    assert result.testsRun == 4 and result.wasSuccessful()
    assert set(seen) == {(dtype, form) for dtype in (torch.float16, torch.float32) for form in (2, 29)}


def test_run_tests_runs_the_calling_script(monkeypatch):
    monkeypatch.setattr("sys.argv", ["prog", "--help"])
    with pytest.raises(SystemExit) as caught:
        run_tests()
    assert caught.value.code == 0
