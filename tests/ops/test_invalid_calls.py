# SPDX-License-Identifier: Apache-2.0
"""Every invalid call of the case tables is refused, by the operator and by its reference."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import sys

import case_table
import pytest
import torch

import anynpu
from anynpu import _native

OF_THEIR_OWN = ("compressed_matmul", "quantize", "rope_kv_cache")  # whose arguments are made, or must stay unchanged
FUNCTIONS = {"format_cast": "nd_to_nz"}  # where it has not the name of the table
CALLS = [
    (FUNCTIONS.get(path.stem, path.stem), case)
    for path in sorted(case_table.CASES.glob("*.yaml"))
    if path.stem not in OF_THEIR_OWN
    for case in case_table.load(path.stem)
    if case.error is not None
]


@pytest.mark.parametrize("module", [anynpu, anynpu.reference], ids=["cpu", "reference"])
@pytest.mark.parametrize(("name", "case"), CALLS, ids=[f"{name}: {case.name}" for name, case in CALLS])
def test_is_refused(name, case, module):
    with pytest.raises(getattr(builtins, case.error["python"]), match=case.error["match"]):
        getattr(module, name)(**case.args)


class RefusedByC(Exception):
    """With the sentence of the library."""


def raise_refused(_status):
    raise RefusedByC(_native.library.anynpu_last_error().decode())


def without_checks(monkeypatch, name):
    """The CPU plan of an operator, which C alone refuses. What returns nothing only checks."""
    modules = [importlib.import_module(f"anynpu.ops.{name}.{part}") for part in ("spec", "cpu")]
    for module in modules:
        for attribute, value in list(vars(module).items()):
            if inspect.isfunction(value) and inspect.signature(value).return_annotation == "None":
                monkeypatch.setattr(module, attribute, lambda *_, **__: None)
    monkeypatch.setattr(_native, "raise_for_status", raise_refused)
    return getattr(modules[1], name)._plan


def call_planned(plan, args):
    given = inspect.signature(plan).bind(**args)
    given.apply_defaults()
    plan(*given.args)(*[value for value in given.args if isinstance(value, torch.Tensor)])


KERNELS = [
    path.stem
    for path in sorted(case_table.CASES.glob("*.yaml"))
    if path.stem not in ("cast", "compressed_matmul")  # whose rows end in Python
    and hasattr(sys.modules.get(f"anynpu.ops.{path.stem}.cpu"), path.stem)
]
NOT_TOLD = {
    "moe_gating_topk": {
        "renorm",
        *("table of another k", "token ids of another length", "float token ids", "negative token"),  # looked up before
    },
    "moe_init_routing": {"capacity of zero"},  # an output may be empty
}


@pytest.mark.parametrize("name", KERNELS)
def test_c_refuses_without_the_checks_of_python(name, monkeypatch):
    """In the words of the table, but for calls that Python cannot hand on."""
    plan, refused = without_checks(monkeypatch, name), 0
    for case in case_table.load(name):
        if case.error is None:
            continue
        try:
            call_planned(plan, case.args)
        except RefusedByC as error:
            assert case.spec.get("python_only") or re.search(case.error["match"], str(error)), (case.name, str(error))
            refused += 1
        except Exception:  # whatever comes of shapes and dtypes that no check has seen
            continue
        else:
            assert case.spec.get("python_only") or case.name in NOT_TOLD.get(name, ()), f"{case.name} is not refused"
    assert refused > 0
