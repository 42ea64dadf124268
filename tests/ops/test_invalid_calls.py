# SPDX-License-Identifier: Apache-2.0
"""Every invalid call of the case tables is refused, by the operator and by its reference."""

from __future__ import annotations

import builtins

import case_table
import pytest

import anynpu

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
