# SPDX-License-Identifier: Apache-2.0
"""Checking mode: every planted defect is found where it was planted, and nothing else."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from c_programs import FINDINGS_STATUS, PROGRAMS, SANITIZER_OPTIONS, run_program
from typer.testing import CliRunner

from anynpu.cli import app
from anynpu.cli import toolkit as commands

DEFECTS = [
    "leaked-tensor",
    "leaked-array",
    "leaked-stream",
    "leaked-stream: busy",
    "leaked-event",
    "leaked-context",
    "leaked-memory",
    "leaked-host-memory",
    "leaked-executor",
    "executor-not-run",
    "exceeds-allocation",
    "host-pointer",
    "host-pointer: copy",
    "use-after-free",
    "use-after-free: memory",
    "use-after-free: executor",
    "double-free",
    "double-free: memory",
    "invalid-free",
    "invalid-handle",
    "unsynchronised-read",
    "unsynchronised-read: other stream",
    "workspace-too-small",
    "wrong-executor",
    "event-not-recorded",
]


@pytest.fixture(scope="module")
def program(build):
    return build(PROGRAMS / "defects.cc", "-O0")


def checked(program, tmp_path, *arguments, **environment):
    path = tmp_path / "report.json"
    outcome = run_program(program, *arguments, ANYNPU_CHECK="1", ANYNPU_CHECK_REPORT=str(path), **environment)
    return outcome, json.loads(path.read_text())


def test_the_table_is_complete(program):
    assert run_program(program).stdout.split("\n")[:-1] == ["clean", *DEFECTS, "hardware-limit"]


@pytest.mark.parametrize("defect", DEFECTS)
def test_planted_defect_is_found(program, tmp_path, defect):
    outcome, report = checked(program, tmp_path, defect)
    assert outcome.returncode == FINDINGS_STATUS, outcome.stderr
    assert [finding["kind"] for finding in report["findings"]] == [defect.split(":")[0]]
    (finding,) = report["findings"]
    assert finding["at"] or finding["created"], "no place in the program"
    assert all(str(program) == frame["module"] for frame in (*finding["at"], *finding["created"]))


@pytest.mark.parametrize("defect", ["clean", "hardware-limit"])
def test_clean_program_has_no_finding(program, tmp_path, defect):
    outcome, report = checked(program, tmp_path, defect)
    assert (outcome.returncode, report["findings"]) == (0, []), outcome.stderr


def test_limits_of_a_chip_are_findings_in_strict_mode(program, tmp_path):
    outcome, report = checked(program, tmp_path, "hardware-limit", ANYNPU_STRICT="Ascend910B")
    assert outcome.returncode == FINDINGS_STATUS
    (finding,) = report["findings"]
    assert (finding["kind"], finding["call"]) == ("hardware-limit", "aclnnConvertWeightToINT4PackGetWorkspaceSize")
    assert finding["message"] == "Ascend910B (Atlas A2) wants a 2-D weight, got 3 axes"


@pytest.mark.parametrize("defect", DEFECTS)
def test_without_checking_mode_defects_are_tolerated(program, defect):
    outcome = run_program(program, defect)
    assert (outcome.returncode, outcome.stderr) == (0, "")


@pytest.fixture(scope="module")
def asan_program(build_asan):
    return build_asan(PROGRAMS / "defects.cc")


@pytest.mark.parametrize("defect", ["clean", *DEFECTS])
def test_defects_do_not_disturb_the_library(asan_program, tmp_path, defect):
    """Under AddressSanitizer, which must have nothing to say about us, in and out of checking mode."""
    outcome = run_program(asan_program, defect, **SANITIZER_OPTIONS)
    assert outcome.returncode == 0, outcome.stderr
    outcome, _ = checked(asan_program, tmp_path, defect, **SANITIZER_OPTIONS)
    assert outcome.returncode == (0 if defect == "clean" else FINDINGS_STATUS), outcome.stderr


def test_a_failing_program_keeps_its_status(program, tmp_path):
    outcome, _ = checked(program, tmp_path, "no such defect")
    assert outcome.returncode == 2


def test_text_report_on_stderr(program):
    outcome = run_program(program, "double-free", ANYNPU_CHECK="1")
    assert outcome.returncode == FINDINGS_STATUS
    for part in (
        "1 finding",
        "double-free: aclDestroyTensor: tensor is not a live aclTensor",
        "created at",
        "destroyed at",
    ):
        assert part in outcome.stderr


def check(*arguments):
    return CliRunner().invoke(app, ["check", *arguments])


def test_check_command_names_lines(program):
    if shutil.which("addr2line") is None:
        pytest.skip("needs addr2line")
    outcome = check("--json", str(program), "leaked-stream")
    assert outcome.exit_code == FINDINGS_STATUS
    (finding,) = json.loads(outcome.stdout)["findings"]
    source = (PROGRAMS / "defects.cc").read_text().splitlines()
    line = 1 + next(number for number, text in enumerate(source) if "aclrtCreateStream(&stream)" in text)
    assert re.fullmatch(rf"new_stream .*/defects\.cc:{line}", finding["created"][0]["place"])
    outcome = check(str(program), "leaked-stream")
    assert re.search(rf"created at new_stream .*/defects\.cc:{line}, called from leaked_stream ", outcome.stderr)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("main", "main"),
        ("unsigned long grow<unsigned long>(unsigned long)", "grow<unsigned long>"),
        ("(anonymous namespace)::Model::operator()() const", "Model::operator()"),
        ("main::{lambda()#1}::operator()() const", "a lambda in main"),
        ("(anonymous namespace)::Model::load()::{lambda(int)#1}::operator()(int) const", "a lambda in Model::load"),
        ("void std::__invoke_impl<void, main::{lambda()#1}>(std::__invoke_other)", None),
    ],
)
def test_places_are_named_for_people(function, name):
    place = commands._place(function, "/sources/x.cpp:7 (discriminator 5)")
    finding = {"kind": "k", "call": "", "message": "m", "count": 1, "at": [], "destroyed": []}
    text = commands.report_text({"count": 1, "findings": [finding | {"created": [{"place": place}]}]})
    assert ("created at" in text) == (name is not None)
    assert name is None or text.endswith(f"created at {name} /sources/x.cpp:7")


def test_check_command_says_when_it_saw_nothing_of_ours():
    outcome = check("true")
    assert outcome.exit_code == 1
    assert "no report" in outcome.stderr
