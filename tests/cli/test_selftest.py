# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from anynpu import _native, selftest
from anynpu._register import Sample, operators
from anynpu.cli import app

OPERATOR = operators["int4_pack"]


@pytest.fixture
def wrong_operator(monkeypatch):
    """int4_pack with a reference that disagrees in its last element."""

    def reference(*args):
        expected = OPERATOR.reference(*args).clone()
        expected.view(-1)[-1] += 1
        return expected

    monkeypatch.setitem(operators, "int4_pack", dataclasses.replace(OPERATOR, reference=reference))


def test_every_operator_and_tier_agrees():
    result = CliRunner().invoke(app, ["selftest", "--json"])
    told = json.loads(result.output)
    assert [row["failures"] for row in told["results"]] == [[]] * len(told["results"])
    assert result.exit_code == 0
    ran = {(row["operator"], row["tier"]) for row in told["results"] if row["device"] == "cpu"}
    assert ran == {(name, tier) for name in operators for tier in selftest.tiers()}
    assert set(told["not_run"]) == set(_native.ISA_TIERS) - set(selftest.tiers())


def test_a_difference_is_reported_and_fails(wrong_operator):
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["selftest", "--operator", "int4_pack"])
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "one word: output 0: 1 of 1 elements differ, the first at [0, 0]: expected" in result.output
    assert f"0 of {len(selftest.tiers())} combinations agree with the reference" in result.output


def test_an_exception_is_a_failure(monkeypatch):
    bad = [Sample("not a tensor", (3,))]
    monkeypatch.setitem(operators, "int4_pack", dataclasses.replace(OPERATOR, samples=lambda: bad))
    results = list(selftest.run(["int4_pack"]))
    assert all(row.failures[0].startswith("not a tensor: ") for row in results)


def test_the_cap_is_restored():
    before = _native.isa()
    list(selftest.run(["int4_unpack"]))
    assert _native.isa() == before


def test_unknown_operator_is_refused():
    result = CliRunner().invoke(app, ["selftest", "--operator", "nothing"])
    assert result.exit_code == 2
    assert "no operator 'nothing'; there are" in result.stderr


@pytest.mark.parametrize("change", [0.0, 0.5, 1.5, float("nan")])
def test_a_bound_allows_what_it_allows_and_no_nan(change):
    expected = torch.tensor([2.0, float("nan"), float("inf")])
    result = expected.clone()
    result[0] += change
    failure = selftest._difference(result, expected, torch.ones(3))
    assert (failure is None) == (change <= 1)


def test_arguments_that_an_operator_writes_to_are_compared(monkeypatch):
    operator = operators["rope_kv_cache"]

    def reference(*args):
        results = operator.reference(*args)
        args[3].add_(1)  # k_cache
        return results

    changed = dataclasses.replace(operator, reference=reference, error_bound=None)
    monkeypatch.setitem(operators, "rope_kv_cache", changed)
    failures = next(selftest.run(["rope_kv_cache"])).failures
    assert len(failures) == len(list(operator.samples()))
    assert any("output 3: " in failure for failure in failures)
