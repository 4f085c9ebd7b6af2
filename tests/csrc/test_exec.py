# SPDX-License-Identifier: Apache-2.0
"""The executor: what passes the check runs without harm, and a team of threads gives the bytes of one thread."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc.test_csrc import C11, ROOT, SANITIZERS, compiler, run
from tests.csrc.test_kernels import HERE, INCLUDE, PLAIN, compiled, compiled_isas, machine
from tests.disassembly import float_or_division, instructions

EXECUTOR = sorted((ROOT / "csrc" / "exec").glob("*.c"))
TESTS = sorted(HERE.glob("exec_*.c"))
REPORT = re.compile(
    r"(\d+) tables, (\d+) sound programs; changed: (\d+) tried, (\d+) passed, (\d+) ran; random: (\d+) tried, (\d+) passed, (\d+) ran\n"
)
THREAD_SANITIZER = ["-O1", "-g", "-fsanitize=thread"]


def runs_with(cc: str, folder: Path, flags: list[str]) -> bool:
    """Whether programs that are compiled with these flags run here."""
    probe = folder / "sanitized.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    linked = subprocess.run([cc, *flags, probe, "-o", folder / "sanitized"], capture_output=True, check=False)
    return linked.returncode == 0 and subprocess.run([folder / "sanitized"], capture_output=True, check=False).returncode == 0


def build(cc: str, target: str, folder: Path, *flags: str) -> Path:
    """Return the program that tries programs, with all tables for `target`."""
    objects, macros = compiled_isas(cc, target, folder, *flags)
    objects += compiled(cc, [*EXECUTOR, *PLAIN, *TESTS], folder, *flags, *macros)
    run(cc, *flags, *objects, "-pthread", "-o", folder / "exec_test")
    return folder / "exec_test"


def assert_tried(report: str, programs: int) -> None:
    """Assert that all sound programs ran, and that many changed programs passed, and many did not."""
    found = REPORT.fullmatch(report)
    assert found is not None, report
    tables, sound, tried, passed, ran, random, _, _ = map(int, found.groups())
    assert tables >= 1 and sound == programs and random == 20 * programs
    assert 9 * programs < tried and 0.1 * tried < passed < 0.9 * tried and 0.8 * passed < ran


def test_programs_under_sanitizers(tmp_path):
    """A program that passes the check would leave its memory, or tables and teams would give different bytes."""
    cc = compiler("CC", "cc", "gcc", "clang")
    if not runs_with(cc, tmp_path, SANITIZERS):
        pytest.skip(f"{cc} has no address and undefined-behaviour sanitizer here")
    assert_tried(run(build(cc, machine(), tmp_path, *SANITIZERS), "600"), 600)


def test_programs_of_arm_in_an_emulator(tmp_path):
    """The executor or a kernel for 64-bit Arm would leave its memory, or give other bytes than the plain kernels."""
    cc, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if cc is None or emulator is None:
        pytest.skip("no cross compiler and emulator: aarch64-linux-gnu-gcc and qemu-aarch64 are not both on the path")
    assert_tried(run(emulator, build(cc, "arm", tmp_path, "-O2", "-static"), "300"), 300)


@pytest.mark.parametrize("flags", [THREAD_SANITIZER, ["-O2"]], ids=["thread-sanitizer", "optimized"])
def test_team(tmp_path, flags):
    """Threads would race, wait for each other for ever, miss a step, or keep the processor busy while they wait."""
    cc = compiler("CC", "cc", "gcc", "clang")
    if not runs_with(cc, tmp_path, flags):
        pytest.skip(f"{cc} has no thread sanitizer here")
    team = [ROOT / "csrc" / "exec" / name for name in ("pool.c", "run.c")]
    run(cc, *C11, *flags, *INCLUDE, *team, HERE / "pool_test.c", "-pthread", "-o", tmp_path / "pool_test")
    assert int(run(tmp_path / "pool_test", "200")) > 1600


@pytest.mark.parametrize("optimization", ["-O2", "-O3"])
def test_executor_needs_no_float_register(tmp_path, optimization):
    """The executor or its check would touch a float or vector register, or divide."""
    if machine() == "none":
        pytest.skip(f"no list of float instructions for {platform.machine()}")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    cc = compiler("CC", "cc", "gcc", "clang")
    code = [line for path in compiled(cc, EXECUTOR, tmp_path, optimization, "-mgeneral-regs-only") for line in instructions(path)]
    assert len(code) > 1500
    assert float_or_division(code) == []
    assert [line for line in code if re.search(r"%[xyz]mm|%st|\b[vq]\d+\.", line)] == []
