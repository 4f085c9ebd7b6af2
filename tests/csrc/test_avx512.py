# SPDX-License-Identifier: Apache-2.0
"""The AVX-512 kernels stay inside their memory, keep sums in registers, and hold no float and no division."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc.test_csrc import C11, HERE, SANITIZERS, compiler, run
from tests.csrc.test_kernels import FLAGS, INCLUDE, KERNELS, PLAIN, compiled
from tests.disassembly import float_or_division, instructions, mnemonic

ISA = "x86_avx512vnni"
TESTS = sorted(HERE.glob("guarded_*.c"))

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these kernels are for x86-64")


def kernels(cc: str, folder: Path, *flags: str) -> list[Path]:
    """Return the objects of the AVX-512 kernels; skip with a compiler that does not know them."""
    known = subprocess.run([cc, *FLAGS[ISA], "-x", "c", "-fsyntax-only", "-"], input="", capture_output=True, text=True, check=False)
    if known.returncode:
        pytest.skip(f"{cc} does not know {FLAGS[ISA][-1]}")
    return compiled(cc, sorted(KERNELS.rglob(f"{ISA}.c")), folder, *flags, *FLAGS[ISA])


def functions(path: Path) -> dict[str, list[str]]:
    """Return the instructions of each function of an object file."""
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^[0-9a-f]+ <([^>]+)>:$", listing, flags=re.MULTILINE)
    return {name: re.findall(r"^\s*[0-9a-f]+:\s+(\S.*)$", body, re.MULTILINE) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("flags", [["-O3"], ["-O0"], SANITIZERS], ids=["optimized", "unoptimized", "sanitized"])
def test_guarded_steps(tmp_path, flags):
    """A kernel would touch memory behind a tensor, or write another byte than sums in 64 bits give."""
    cc = compiler("CC", "cc", "gcc", "clang")
    objects = kernels(cc, tmp_path, *flags) + compiled(cc, PLAIN + TESTS, tmp_path, *flags, "-DINTONLY_HAVE_AVX512VNNI")
    run(cc, *flags, *objects, "-pthread", "-o", tmp_path / "guarded_test")
    agreed = int(run(tmp_path / "guarded_test", "avx512vnni", "300"))
    if agreed == 0:
        pytest.skip("this processor or its operating system has no AVX-512 VNNI")
    assert agreed == 900


@pytest.mark.parametrize("optimization", ["-O2", "-O3"])
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_sums_stay_in_registers(tmp_path, name, optimization):
    """An optimizer would move accumulators of a gemm tile to memory between dot products, at half the speed."""
    cc = shutil.which(name)
    if cc is None or shutil.which("objdump") is None:
        pytest.skip(f"{name} or objdump is not on the path")
    objects = kernels(cc, tmp_path, optimization)
    tiles = functions(next(path for path in objects if path.name.startswith("gemm_")))
    tiles = {name: code for name, code in tiles.items() if name.startswith("gemm_tile_")}
    assert len(tiles) == 48
    for tile, code in tiles.items():
        product = "vpdpwssd" if tile.startswith("gemm_tile_16_") else "vpdpbusd"
        dots = [at for at, line in enumerate(code) if mnemonic(line) == product]
        loop = code[dots[0] : dots[-1] + 1]
        assert len(dots) in (4, 8, 12, 16, 20, 24), tile
        assert [line for line in loop if "%zmm" in line and "%rsp" in line] == [], tile


def test_no_float_no_division(tmp_path):
    """A kernel would compute with a float or divide."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    cc = compiler("CC", "cc", "gcc", "clang")
    code = [line for path in kernels(cc, tmp_path, "-O3") for line in instructions(path)]
    assert sum("vpdpbusd" in line for line in code) > 100
    assert float_or_division(code) == []


def test_no_warning_from_either_compiler():
    """A kernel would be clean for one compiler only."""
    for name in ("gcc", "clang"):
        if (cc := shutil.which(name)) is not None:
            for source in sorted(KERNELS.rglob(f"{ISA}.c")):
                run(cc, *C11, *FLAGS[ISA], *INCLUDE, "-fsyntax-only", source)
