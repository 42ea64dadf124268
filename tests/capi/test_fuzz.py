# SPDX-License-Identifier: Apache-2.0
"""Random tensor descriptions for every operator, under AddressSanitizer and UBSan, and where allocations fail."""

from __future__ import annotations

import re

from c_programs import PROGRAMS, SANITIZER_OPTIONS, run_program


def counts_of(outcome):
    """Calls, launches and launches without an error."""
    assert outcome.returncode == 0, outcome.stderr
    counts = re.fullmatch(r"ok: seed 2, (\d+) calls, (\d+) launched, (\d+) without error\n", outcome.stdout)
    return map(int, counts.groups())


def test_random_descriptions(build_asan):
    """A short round; longer ones by hand: fuzz <seconds> <seed>, as docs/aclnn.md says."""
    outcome = run_program(build_asan(PROGRAMS / "fuzz.cc"), "5", "2", **SANITIZER_OPTIONS)
    calls, launched, passed = counts_of(outcome)
    assert calls > 500 and launched > calls / 20 and passed > calls / 40


def test_random_descriptions_without_memory(build):
    """libgomp ends a process that has no memory for its threads: so there are none."""
    program = build(PROGRAMS / "fuzz.cc", PROGRAMS / "failing_malloc.cc")
    calls, launched, _ = counts_of(run_program(program, "2", "2", OMP_NUM_THREADS="1"))
    assert calls > 500 and launched > calls / 20
