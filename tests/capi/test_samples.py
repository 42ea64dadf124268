# SPDX-License-Identifier: Apache-2.0
"""The C++ samples of the documents, extracted and compiled unmodified as their page says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from c_programs import FINDINGS_STATUS, SANITIZER_OPTIONS, SEEDS, run_program

# As the vendor's page on compiling and running samples has it.
CMAKE = """
cmake_minimum_required(VERSION 3.14)
project(ACLNN_EXAMPLE)
add_compile_options(-std=c++11)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "./bin")
set(CMAKE_CXX_FLAGS_RELEASE "-fPIC -O2 -Wall")
add_executable(opapi_test sample.cpp)
if(NOT "$ENV{ASCEND_CUSTOM_PATH}" STREQUAL "")
  set(ASCEND_PATH $ENV{ASCEND_CUSTOM_PATH})
else()
  set(ASCEND_PATH "/usr/local/Ascend/ascend-toolkit/latest")
endif()
set(INCLUDE_BASE_DIR "${ASCEND_PATH}/include")
include_directories(${INCLUDE_BASE_DIR} ${INCLUDE_BASE_DIR}/aclnn)
target_link_libraries(opapi_test PRIVATE
  ${ASCEND_PATH}/lib64/libascendcl.so
  ${ASCEND_PATH}/lib64/libnnopbase.so
  ${ASCEND_PATH}/lib64/libopapi.so)
install(TARGETS opapi_test DESTINATION ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
"""


def sample(name: str) -> str:
    seed = SEEDS / f"{name}.txt"
    if not seed.exists():
        pytest.skip("needs ../shared/seeds, which is not part of the repository")
    text = seed.read_text()
    return text[text.index("#include <iostream>") :]


def build_with_cmake(name: str, toolkit: Path, folder: Path, flags: str = "") -> Path:
    source = sample(name)
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    (folder / "sample.cpp").write_text(source)
    (folder / "CMakeLists.txt").write_text(CMAKE)
    environment = {**os.environ, "ASCEND_CUSTOM_PATH": str(toolkit)}
    configure = [
        "cmake",
        "-S",
        folder,
        "-B",
        folder / "build",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CXX_FLAGS={flags}",
    ]
    subprocess.run(configure, env=environment, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", folder / "build"], check=True, stdout=subprocess.DEVNULL)
    return folder / "build" / "bin" / "opapi_test"


def assert_prints_32(outcome):
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.splitlines() == [f"result[{i}] is: 32.000000" for i in range(256)]


def test_int4_pack_sample(toolkit, tmp_path):
    assert_prints_32(run_program(build_with_cmake("aclnnConvertWeightToINT4Pack", toolkit, tmp_path)))


def test_int4_pack_sample_under_address_sanitizer(build_asan, tmp_path):
    flags = " ".join(build_asan.flags)
    program = build_with_cmake("aclnnConvertWeightToINT4Pack", build_asan.toolkit, tmp_path, flags)
    assert_prints_32(run_program(program, **SANITIZER_OPTIONS))


def test_int4_pack_sample_leaks_the_workspace(toolkit, tmp_path):
    """It frees its workspace only if the last operator wanted one, and the matmul before did."""
    program = build_with_cmake("aclnnConvertWeightToINT4Pack", toolkit, tmp_path)
    report = tmp_path / "report.json"
    outcome = run_program(program, ANYNPU_CHECK="1", ANYNPU_CHECK_REPORT=str(report))
    assert outcome.returncode == FINDINGS_STATUS
    assert [finding["kind"] for finding in json.loads(report.read_text())["findings"]] == ["leaked-memory"]


# The sample prints 105 million lines; the run below goes without them.
QUIET = """
#include <cstdio>
#include <iostream>
#include <vector>
#define printf(...) 0
"""


def test_rope_sample_and_its_defects(toolkit, tmp_path):
    (tmp_path / "quiet.h").write_text(QUIET)
    program = build_with_cmake("aclnnDequantRopeQuantKvcache", toolkit, tmp_path, f"-include {tmp_path / 'quiet.h'}")
    report = tmp_path / "report.json"
    outcome = run_program(program, ANYNPU_CHECK="1", ANYNPU_CHECK_REPORT=str(report))
    assert outcome.returncode == FINDINGS_STATUS, outcome.stderr
    findings = json.loads(report.read_text())["findings"]
    kinds = [finding["kind"] for finding in findings for _ in range(finding["count"])]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "exceeds-allocation": 1,
        "leaked-memory": 14,
        "leaked-tensor": 14,
        "leaked-array": 1,
    }
    (small,) = (finding["message"] for finding in findings if finding["kind"] == "exceeds-allocation")
    assert small == (
        "aclTensor int32 (320, 1, 1280) needs 1638400 bytes, but its device memory was allocated with 819200 "
        "(2097152 after rounding up)"
    )
