# SPDX-License-Identifier: Apache-2.0
"""The AVX-512 kernels of single bytes: copies and tables equal plain loops, stay in their arrays, hold no float and no division."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc.test_csrc import C11, HERE, ROOT, SANITIZERS, compiler, run
from tests.disassembly import float_or_division, instructions

KERNELS = ROOT / "csrc" / "kernels"
INCLUDE = ["-I", ROOT / "csrc", "-I", ROOT / "csrc" / "include"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512vbmi"]
PROGRAMS = {"copy": "copy_test.c", "map": "table_test.c"}

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these kernels are for x86-64")


def has_avx512() -> bool:
    """Return whether this processor has the bytes of AVX-512 that the kernels permute."""
    info = Path("/proc/cpuinfo")
    return info.exists() and {"avx512bw", "avx512vbmi"} <= set(info.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize("flags", [["-O3"], SANITIZERS], ids=["optimized", "sanitized"])
def test_bytes_are_those_of_plain_loops(tmp_path, kind, flags):
    """A byte would be another one or go elsewhere, be written by two parts, or lie outside its tensor."""
    if not has_avx512():
        pytest.skip("this processor has no AVX-512 with VBMI")
    cc = compiler("CC", "cc", "gcc", "clang")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    linked = subprocess.run([cc, *flags, probe, "-o", tmp_path / "probe"], capture_output=True, check=False)
    if linked.returncode or subprocess.run([tmp_path / "probe"], capture_output=True, check=False).returncode:
        pytest.skip(f"{cc} has no address and undefined-behaviour sanitizer here")
    sources = [*(KERNELS / kind).glob("x86_*.c"), *(path for path in (KERNELS / kind).glob("*.c") if path.stem in ("ref", "table"))]
    sources.append(HERE / PROGRAMS[kind])
    run(cc, *C11, *flags, *AVX512, *INCLUDE, *sources, "-o", tmp_path / kind)
    report = run(tmp_path / kind)
    if kind == "copy":
        assert report.splitlines() == [f"{form} 400" for form in range(6)]
    else:
        assert 1000 < int(report) < 1900


@pytest.mark.parametrize("kind", PROGRAMS)
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_no_float_no_division(tmp_path, kind, name):
    """The kernel would compute with a float or divide."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    cc = shutil.which(name) or pytest.skip(f"{name} is not on the path")
    run(cc, *C11, "-O3", *AVX512, *INCLUDE, "-c", KERNELS / kind / "x86_avx512vnni.c", "-o", tmp_path / "kernel.o")
    code = instructions(tmp_path / "kernel.o")
    assert any("vpermi2b" in line or "vpermt2b" in line for line in code)
    assert float_or_division(code) == []
