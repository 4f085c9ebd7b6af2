# SPDX-License-Identifier: Apache-2.0
"""The kernels of every table give the bytes of plain loops over exact integers, and hold no float and no division."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc.test_csrc import C11, ROOT, SANITIZERS, compiler, run
from tests.disassembly import float_or_division, instructions

KERNELS = ROOT / "csrc" / "kernels"
HERE = Path(__file__).resolve().parent
INCLUDE = ["-I", ROOT / "csrc" / "include", "-I", ROOT / "csrc"]
PLAIN = sorted(path for path in KERNELS.rglob("*.c") if not path.name.startswith(("x86_", "arm_")))
TESTS = sorted(HERE.glob("kernels_*.c"))
KINDS = ["gemm", "depthwise", "window", "halo", "contract", "map", "copy", "gather", "attention", "norm"]
FLAGS = {
    "x86_avx2": ["-mavx2"],
    "x86_avxvnni": ["-mavx2", "-mavxvnni"],
    "x86_avx512vnni": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512vbmi"],
    "arm_neon": [],
    "arm_neon_dotprod": ["-march=armv8.2-a+dotprod"],
}


def machine() -> str:
    """Return the word that begins the names of this machine's kernels; another machine has only the plain ones."""
    return {"x86_64": "x86", "AMD64": "x86", "aarch64": "arm", "arm64": "arm"}.get(platform.machine(), "none")


def compiled(cc: str, sources: list[Path], folder: Path, *flags: str | Path) -> list[Path]:
    """Return the objects of these sources."""
    objects = [folder / f"{source.parent.name}_{source.stem}.o" for source in sources]
    for source, target in zip(sources, objects, strict=True):
        run(cc, *C11, *flags, *INCLUDE, "-I", HERE, "-c", source, "-o", target)
    return objects


def compiled_isas(cc: str, target: str, folder: Path, *flags: str) -> tuple[list[Path], list[str]]:
    """Return the objects of every instruction set that has a table for `target`, and the macros that announce them."""
    objects, macros = [], []
    probe = folder / "probe.c"
    probe.write_text("int probe(void) { return 0; }\n", encoding="utf-8")
    for name, options in FLAGS.items():
        known = subprocess.run([cc, *options, "-c", probe, "-o", folder / "probe.o"], capture_output=True, check=False)
        if name.startswith(target) and (KERNELS / f"{name}.c").exists() and known.returncode == 0:
            objects += compiled(cc, sorted(KERNELS.rglob(f"{name}.c")), folder, *flags, *options)
            macros.append(f"-DINTONLY_HAVE_{name.partition('_')[2].upper()}")
    return objects, macros


def build(cc: str, target: str, folder: Path, *flags: str) -> Path:
    """Return the program of checks with all tables for `target`."""
    objects, macros = compiled_isas(cc, target, folder, *flags)
    objects += compiled(cc, PLAIN + TESTS, folder, *flags, *macros)
    run(cc, *flags, *objects, "-pthread", "-o", folder / "kernels_test")
    return folder / "kernels_test"


def assert_complete(report: str, rounds: int) -> None:
    """Assert that every test of the plain table ran every round, and that other tables ran or refused theirs."""
    lines = [line.split() for line in report.splitlines()]
    assert [[isa, kind, int(cases), int(refused)] for isa, kind, cases, refused in lines[: len(KINDS)]] == [
        ["scalar", kind, rounds, 0] for kind in KINDS
    ]
    for _, _, cases, refused in lines[len(KINDS) : -1]:
        assert int(cases) + int(refused) == rounds
    assert lines[-1][0] == "comparisons"
    assert int(lines[-1][1]) > 50_000 * rounds


def test_kernels_under_sanitizers(tmp_path):
    """A kernel would write another byte than plain loops do, outside its output, or twice, or read what it may not."""
    cc = compiler("CC", "cc", "gcc", "clang")
    probe = tmp_path / "sanitized.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    linked = subprocess.run([cc, *SANITIZERS, probe, "-o", tmp_path / "sanitized"], capture_output=True, check=False)
    if linked.returncode or subprocess.run([tmp_path / "sanitized"], capture_output=True, check=False).returncode:
        pytest.skip(f"{cc} has no address and undefined-behaviour sanitizer here")
    assert_complete(run(build(cc, machine(), tmp_path, *SANITIZERS), "150"), 150)


def test_kernels_optimized(tmp_path):
    """The compiler would make other bytes of a kernel when it optimizes."""
    cc = compiler("CC", "cc", "gcc", "clang")
    assert_complete(run(build(cc, machine(), tmp_path, "-O3"), "150"), 150)


def test_kernels_of_arm_in_an_emulator(tmp_path):
    """A kernel for 64-bit Arm would write other bytes than plain loops do; also where char is unsigned."""
    cc, emulator = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if cc is None or emulator is None:
        pytest.skip("no cross compiler and emulator: aarch64-linux-gnu-gcc and qemu-aarch64 are not both on the path")
    program = build(cc, "arm", tmp_path, "-O2", "-static")
    assert_complete(run(emulator, program, "60"), 60)


@pytest.mark.parametrize("optimization", ["-O2", "-O3"])
def test_plain_kernels_need_no_float_register(tmp_path, optimization):
    """A plain kernel would touch a float or vector register, or divide."""
    if machine() == "none":
        pytest.skip(f"no list of float instructions for {platform.machine()}")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    cc = compiler("CC", "cc", "gcc", "clang")
    code = [line for path in compiled(cc, PLAIN, tmp_path, optimization, "-mgeneral-regs-only") for line in instructions(path)]
    assert len(code) > 3000
    assert float_or_division(code) == []
    assert [line for line in code if re.search(r"%[xyz]mm|%st|\b[vq]\d+\.", line)] == []
