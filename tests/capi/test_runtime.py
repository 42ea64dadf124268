# SPDX-License-Identifier: Apache-2.0
"""The acl runtime through small programs: plain, under AddressSanitizer and UBSan, under ThreadSanitizer."""

from __future__ import annotations

import pytest
from c_programs import PROGRAMS, ROOT, SANITIZER_OPTIONS, run_program

INCLUDE = ROOT / "include"
HEADERS = sorted(
    path.relative_to(INCLUDE).as_posix()
    for folder in ("acl", "aclnn", "aclnnop")
    for path in (INCLUDE / folder).glob("*.h")
)


def assert_passes(program, **environment):
    outcome = run_program(program, **environment)
    assert (outcome.returncode, outcome.stdout) == (0, "ok\n"), outcome.stderr


@pytest.mark.parametrize("name", ["misuse", "streams"])
def test_program(build, name):
    assert_passes(build(PROGRAMS / f"{name}.cc"))


@pytest.mark.parametrize("name", ["misuse", "streams"])
def test_program_under_address_sanitizer(build_asan, name):
    assert_passes(build_asan(PROGRAMS / f"{name}.cc"), **SANITIZER_OPTIONS)


@pytest.mark.parametrize("name", ["misuse", "streams"])
def test_program_under_thread_sanitizer(build_tsan, name):
    assert_passes(build_tsan(PROGRAMS / f"{name}.cc"), **SANITIZER_OPTIONS)


def test_each_allocation_may_fail(build):
    assert_passes(build(PROGRAMS / "no_memory.cc", PROGRAMS / "failing_malloc.cc"), OMP_NUM_THREADS="1")


@pytest.mark.parametrize("suffix, standard", [(".c", "-std=c99"), (".cc", "-std=c++11")])
def test_each_header_stands_alone(build, tmp_path, suffix, standard):
    """Every header compiles first and twice, strictly, in both languages."""
    extra = "-Wstrict-prototypes" if suffix == ".c" else "-Wold-style-cast"
    for header in HEADERS:
        source = tmp_path / f"{header.replace('/', '_').removesuffix('.h')}{suffix}"
        source.write_text(f'#include "{header}"\n#include "{header}"\nint main(void) {{ return 0; }}\n')
        build(source, standard, "-pedantic-errors", "-Werror", extra)


def test_only_its_own_header_declares_the_int4_packer():
    """The sample of the document declares the two functions itself, with a const output."""
    own = "aclnnop/aclnn_convert_weight_to_int4_pack.h"
    texts = {header: (INCLUDE / header).read_text() for header in HEADERS}
    assert [header for header, text in texts.items() if "ConvertWeightToINT4Pack" in text] == [own]
    assert not [header for header, text in texts.items() if f'"{own}"' in text]
