# SPDX-License-Identifier: Apache-2.0
"""Random tensor descriptions for every operator, under AddressSanitizer and UBSan."""

from __future__ import annotations

import re

from c_programs import PROGRAMS, SANITIZER_OPTIONS, run_program


def test_random_descriptions(build_asan):
    """A short round; longer ones by hand: fuzz <seconds> <seed>, as docs/aclnn.md says."""
    outcome = run_program(build_asan(PROGRAMS / "fuzz.cc"), "5", "2", **SANITIZER_OPTIONS)
    assert outcome.returncode == 0, outcome.stderr
    counts = re.fullmatch(r"ok: seed 2, (\d+) calls, (\d+) launched, (\d+) without error\n", outcome.stdout)
    calls, launched, passed = map(int, counts.groups())
    assert calls > 500 and launched > calls / 20 and passed > calls / 40
