# SPDX-License-Identifier: Apache-2.0
"""Strict mode on the operators themselves; FRACTAL_NZ rules are in installed/test_weight_formats.py."""

from __future__ import annotations

import pytest
import torch

import anynpu
from anynpu._strict import _environment_soc, strict_soc


def matmul(**changes):
    arguments = dict(x=torch.ones(2, 64).half(), weight=torch.ones(64, 8, dtype=torch.int8), scale=torch.ones(8).half())
    return anynpu.weight_quant_matmul(**(arguments | changes))


WIDE = torch.ones(32, 65536, dtype=torch.int8)
LIMITS = {
    "3-D weight": (lambda: anynpu.int4_pack(torch.zeros(1, 2, 8, dtype=torch.int32)), "2-D weight, got 3 axes"),
    "batched x": (lambda: matmul(x=torch.ones(1, 2, 64).half()), "2-D x, got 3 axes"),
    "float32 x": (lambda: matmul(x=torch.ones(2, 64), scale=torch.ones(8)), "x in float16 or bfloat16, got float32"),
    "float32 scale": (lambda: matmul(scale=torch.ones(8)), "scale in the dtype of x, torch.float16, got torch.float32"),
    "N": (lambda: matmul(x=torch.ones(1, 32).half(), weight=WIDE, scale=torch.ones(1).half()), "N <= 65535, got 65536"),
    "K": (
        lambda: matmul(x=torch.ones(1, 65536).half(), weight=WIDE.T[:, :8], scale=torch.ones(1).half()),
        "K <= 65535",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_enforced_on_request_only(name):
    call, rule = LIMITS[name]
    call()
    with anynpu.strict("Ascend910B3"), pytest.raises(ValueError, match=rf": Ascend910B3 \(Atlas A2\) wants .*{rule}"):
        call()
    call()


def test_ordinary_calls_pass():
    with anynpu.strict("Ascend910_93"):
        assert torch.equal(matmul(), torch.full((2, 8), 64.0).half())
        encoded = anynpu.trans_quant_param(torch.ones(8))
        assert torch.equal(matmul(scale=encoded), torch.full((2, 8), 64.0).half())


@pytest.fixture
def environment(monkeypatch):
    """Sets ``ANYNPU_STRICT`` as if it were so when the process began."""

    def set_to(value):
        monkeypatch.setenv("ANYNPU_STRICT", value)
        _environment_soc.cache_clear()

    yield set_to
    monkeypatch.undo()
    _environment_soc.cache_clear()


def test_setting_and_lifting(environment):
    assert strict_soc() is None
    environment("Ascend910B2")
    assert strict_soc() == "Ascend910B2"
    with anynpu.strict(None):
        assert strict_soc() is None
        with anynpu.strict("Ascend910_9391"):
            assert strict_soc() == "Ascend910_9391"
    assert strict_soc() == "Ascend910B2"
    environment("0")
    assert strict_soc() is None


def test_the_environment_counts_for_repeated_calls_and_must_name_a_chip(environment):
    call = LIMITS["float32 x"][0]
    call()
    environment("Ascend910B2")
    with pytest.raises(ValueError, match="wants x in float16 or bfloat16"):
        call()
    environment("Ascend310P3")
    with pytest.raises(ValueError, match="chip must be one of the series"):
        call()


@pytest.mark.parametrize("soc", ["Ascend310P3", "yes", ""])
def test_a_chip_without_known_limits_is_refused(soc):
    with pytest.raises(
        ValueError, match=r"chip must be one of the series Ascend910B \(Atlas A2\), Ascend910_93 \(Atlas A3\)"
    ):
        anynpu.strict(soc)
    assert strict_soc() is None
