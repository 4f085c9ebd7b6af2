# SPDX-License-Identifier: Apache-2.0
"""The float boundary in C gives the codes of its formula, and is the only C code that knows a float."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.csrc.test_csrc import C11, HERE, ROOT, SANITIZERS, compiler, run
from tests.disassembly import float_or_division, instructions

CSRC = ROOT / "csrc"
INCLUDE = ["-I", CSRC, "-I", CSRC / "include"]
AS_BUILT = ["-O3", "-fno-trapping-math", "-ffp-contract=off"]
FLOATS_ALLOWED = {"boundary.c", "boundary.h", "boundary_module.cpp"}
"""Callers may hand in floats; what these files make of them is integers, before any program runs."""
COMMENTS_AND_TEXTS = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"", re.DOTALL)


def assert_complete(report: str) -> None:
    """Assert that enough codes were compared, and that the quick way was sure of most hard ones, and not of all."""
    comparisons, sure, unsure = map(int, report.split())
    assert comparisons > 10_000_000
    assert sure > 1_000_000
    assert 100_000 < unsure < sure / 4


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_boundary_optimized(tmp_path, name):
    """A code would differ from the formula at a tie or an extreme, on some instruction set, or NaN would become a code."""
    cc = shutil.which(name) or pytest.skip(f"{name} is not on the path")
    run(cc, *C11, *AS_BUILT, *INCLUDE, HERE / "boundary_test.c", "-lm", "-o", tmp_path / "boundary")
    assert_complete(run(tmp_path / "boundary"))


def test_boundary_under_sanitizers(tmp_path):
    """The boundary would read or write outside its arrays, or rely on undefined behaviour."""
    cc = compiler("CC", "cc", "gcc", "clang")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    linked = subprocess.run([cc, *SANITIZERS, probe, "-o", tmp_path / "probe"], capture_output=True, check=False)
    if linked.returncode or subprocess.run([tmp_path / "probe"], capture_output=True, check=False).returncode:
        pytest.skip(f"{cc} has no address and undefined-behaviour sanitizer here")
    run(cc, *C11, *SANITIZERS, *INCLUDE, HERE / "boundary_test.c", "-lm", "-o", tmp_path / "boundary")
    assert_complete(run(tmp_path / "boundary"))


def test_boundary_on_arm_in_an_emulator(tmp_path):
    """The boundary would give other codes on 64-bit Arm, whose compilers like to fuse a product and a sum."""
    cc, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if cc is None or emulator is None:
        pytest.skip("no cross compiler and emulator: aarch64-linux-gnu-gcc and qemu-aarch64 are not both on the path")
    for contract in ("off", "fast"):
        flags = ["-O2", "-static", f"-ffp-contract={contract}"]
        run(cc, *C11, *flags, *INCLUDE, HERE / "boundary_test.c", "-lm", "-o", tmp_path / "boundary")
        report = run(emulator, tmp_path / "boundary")
        assert int(report.split()[0]) > 5_000_000


def test_floats_stand_only_at_the_boundary():
    """A float would appear in the executor, a kernel, the law or their bindings."""
    sources = [path for path in CSRC.rglob("*") if path.suffix in (".c", ".h", ".cpp", ".hpp")]
    with_floats = {
        path.relative_to(CSRC).as_posix()
        for path in sources
        if re.search(r"\b(float|double)\b", COMMENTS_AND_TEXTS.sub(" ", path.read_text(encoding="utf-8")))
    }
    assert len(sources) > 30
    assert with_floats == FLOATS_ALLOWED


def test_the_check_of_objects_sees_the_boundary(tmp_path):
    """The check that forbids floats in other objects would not notice this one."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    run(compiler("CC", "cc", "gcc", "clang"), *C11, *AS_BUILT, *INCLUDE, "-c", CSRC / "boundary.c", "-o", tmp_path / "boundary.o")
    assert float_or_division(instructions(tmp_path / "boundary.o")) != []
