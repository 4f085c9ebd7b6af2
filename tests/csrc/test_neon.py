# SPDX-License-Identifier: Apache-2.0
"""The NEON kernels give the bytes of the plain ones, in an emulator of 64-bit Arm, and compute with integers alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.csrc.test_csrc import C11, LAW, SANITIZERS, run
from tests.csrc.test_kernels import FLAGS, HERE, INCLUDE, KERNELS, PLAIN, compiled, compiled_isas
from tests.disassembly import float_or_division, instructions

LIBRARIES = Path("/usr/aarch64-linux-gnu")
ISAS = ["neon", "neon_dotprod"]
CHECKS = ["gemm", "depthwise", "pool"]
BITS_MOVED = re.compile(r"fmov\s+(w\d+|x\d+|s\d+|d\d+|v\d+\.d\[1\]|wzr|xzr), (w\d+|x\d+|s\d+|d\d+|v\d+\.d\[1\]|wzr|xzr)")
"""A move of bits between a general and a vector register; with a number as its operand, fmov would make a float."""


class Arm(NamedTuple):
    """Tools that build for 64-bit Arm and run it here."""

    cc: str
    emulator: str
    objdump: str

    def run(self, processor: str, *command: str | Path) -> str:
        """Return what a program prints on a processor of this name."""
        return run(self.emulator, "-cpu", processor, "-L", LIBRARIES, *command)


@pytest.fixture(scope="module")
def arm() -> Arm:
    """Return the tools; skip without them."""
    names = ("aarch64-linux-gnu-gcc", "qemu-aarch64", "aarch64-linux-gnu-objdump")
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no tools for 64-bit Arm: {', '.join(missing)} not on the path")
    return Arm(*names)


def build(arm: Arm, folder: Path, *flags: str) -> Path:
    """Return the program that compares tables."""
    objects, macros = compiled_isas(arm.cc, "arm", folder, *flags)
    objects += compiled(arm.cc, [*PLAIN, HERE / "neon_test.c"], folder, *flags, *macros)
    run(arm.cc, *flags, *objects, "-pthread", "-o", folder / "neon_test")
    return folder / "neon_test"


@pytest.fixture(scope="module")
def program(arm: Arm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the program as it is shipped, optimized."""
    return build(arm, tmp_path_factory.mktemp("neon"), "-O3")


def assert_compared(report: str, isas: list[str], rounds: int) -> None:
    """Assert that the processor has these instruction sets, and that every check ran on each of them."""
    best, *checks, epilogue = (line.split() for line in report.splitlines())
    assert best == ["best", isas[-1]]
    assert [line[:3] for line in checks] == [[isa, check, str(rounds)] for isa in isas for check in CHECKS]
    assert all(int(line[3]) > 500 * rounds for line in checks)
    assert all(int(line[4]) > rounds / 5 for line in checks if line[1] == "gemm")  # weights of 4 and 2 bits
    assert all(int(line[5]) > rounds / 5 for line in checks if line[1] == "gemm")  # codes of 16 bits
    assert epilogue == ["epilogue", str(100 * rounds)]


def test_neon_equals_plain_kernels(arm, program):
    """A NEON kernel would write another byte than the plain kernel of the same step, or read behind a buffer."""
    assert_compared(arm.run("max", program, "200"), ISAS, 200)


def test_processor_without_dotprod(arm, program):
    """Dispatch would choose an instruction that the processor lacks, or plain NEON would hold one."""
    assert_compared(arm.run("cortex-a53", program, "40"), ["neon"], 40)


def test_neon_under_sanitizers(arm, tmp_path):
    """A NEON kernel would leave its arrays or defined behaviour."""
    probe = tmp_path / "sanitized.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    linked = subprocess.run([arm.cc, *SANITIZERS, probe, "-o", tmp_path / "sanitized"], capture_output=True, check=False)
    # The search for leaks traces its own process, which the emulator does not let it do.
    start = ["env", "ASAN_OPTIONS=detect_leaks=0", arm.emulator, "-cpu", "max", "-L", LIBRARIES]
    if linked.returncode or subprocess.run([*start, tmp_path / "sanitized"], capture_output=True, check=False).returncode:
        pytest.skip("no address and undefined-behaviour sanitizer for 64-bit Arm that runs in the emulator")
    assert_compared(run(*start, build(arm, tmp_path, *SANITIZERS), "40"), ISAS, 40)


def test_law_on_arm(arm, tmp_path):
    """The law for one element would give other results on Arm, where char is unsigned and shifts are other."""
    objects = compiled(arm.cc, LAW, tmp_path, "-O2", "-mgeneral-regs-only")
    run(arm.cc, *C11, "-O2", *INCLUDE, HERE / "arith_test.c", *objects, "-o", tmp_path / "arith_test")
    assert int(arm.run("max", tmp_path / "arith_test")) > 500_000


@pytest.mark.parametrize("optimization", ["-O2", "-O3"])
def test_neon_computes_no_float(arm, tmp_path, optimization):
    """A NEON kernel would compute with a float, or divide."""
    for isa in ISAS:
        sources = sorted(KERNELS.rglob(f"arm_{isa}.c"))
        objects = compiled(arm.cc, sources, tmp_path, optimization, *FLAGS[f"arm_{isa}"])
        code = [line for path in objects for line in instructions(path, arm.objdump)]
        assert len(code) > 1000
        assert any(re.search(r"\bv\d+\.16b", line) for line in code)
        assert any("sdot" in line for line in code) == (isa == "neon_dotprod")
        assert [line for line in float_or_division(code) if not BITS_MOVED.fullmatch(line.strip())] == []


@pytest.mark.parametrize("optimization", ["-O2", "-O3"])
def test_sums_of_words_stay_in_registers(arm, tmp_path, optimization):
    """A compiler would move sums or codes of a tile of int16 codes to memory or to other registers between products."""
    (path,) = compiled(arm.cc, [KERNELS / "gemm" / "arm_neon.c"], tmp_path, optimization)
    parts = re.split(r"^[0-9a-f]+ <([^>]+)>:$", run(arm.objdump, "-d", "--no-show-raw-insn", path), flags=re.MULTILINE)
    tiles = {name: body.splitlines() for name, body in zip(parts[1::2], parts[2::2], strict=True) if re.match(r"words_\d_\d$", name)}
    assert len(tiles) == 12
    for name, code in tiles.items():
        products = [at for at, line in enumerate(code) if "smlal" in line]
        loop = code[products[0] : products[-1] + 1]
        assert len(products) == 32 * int(name[6]), name
        assert [line for line in loop if re.search(r"\bmov\b|\[sp|\bst[rp]\b", line)] == [], name


@pytest.mark.parametrize("expression", ["a / b", "(long)((double)a * 0.5)", "(long)((float)a + (float)b)"])
def test_disassembly_check_sees_what_arm_forbids(arm, tmp_path, expression):
    """The check above would pass whatever the code does."""
    source = tmp_path / "bad.c"
    source.write_text(f"long bad(long a, long b) {{ return {expression}; }}\n", encoding="utf-8")
    run(arm.cc, "-O2", "-c", source, "-o", tmp_path / "bad.o")
    found = float_or_division(instructions(tmp_path / "bad.o", arm.objdump))
    assert [line for line in found if not BITS_MOVED.fullmatch(line.strip())] != []
