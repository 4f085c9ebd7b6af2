# SPDX-License-Identifier: Apache-2.0
"""The C code compiles without warnings, keeps the law, and holds no float and no division."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.disassembly import float_or_division, instructions

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
LAW = [ROOT / "csrc" / name for name in ("arith.c", "pack.c")]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic"]
C11 = ["-std=c11", *WARNINGS]
SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ALIGNED = {"ASAN_OPTIONS": "detect_stack_use_after_return=0"}
"""gcc 13 aligns the frames of that check to less than vectors of 64 bytes need, and stops there itself (its bug 110027)."""


def compiler(variable: str, *names: str) -> str:
    """Return the compiler that the environment names, or the first of `names` that exists; skip without one."""
    found = next(filter(None, map(shutil.which, (os.environ.get(variable, ""), *names))), None)
    if found is None:
        pytest.skip(f"no compiler: none of {', '.join(names)} is on the path")
    return found


def run(*command: str | Path) -> str:
    """Return what a command prints; a failure shows its messages."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **ALIGNED})
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def compile_law(folder: Path, *flags: str) -> list[Path]:
    """Return the objects of the law, compiled with `flags`."""
    cc = compiler("CC", "cc", "gcc", "clang")
    objects = [folder / f"{source.stem}.o" for source in LAW]
    for source, target in zip(LAW, objects, strict=True):
        run(cc, *C11, *flags, "-I", ROOT / "csrc" / "include", "-I", ROOT / "csrc", "-c", source, "-o", target)
    return objects


def test_public_header_alone_as_c(tmp_path):
    """A C program that includes only intonly.h would not compile, link or run."""
    cc = compiler("CC", "cc", "gcc", "clang")
    run(cc, *C11, "-I", ROOT / "csrc" / "include", HERE / "header_test.c", *compile_law(tmp_path), "-o", tmp_path / "header")
    run(tmp_path / "header")


def test_public_header_alone_as_cpp(tmp_path):
    """A C++ program that includes only intonly.h would not compile, link or run."""
    cxx = compiler("CXX", "c++", "g++", "clang++")
    flags = ["-std=c++17", *WARNINGS, "-I", ROOT / "csrc" / "include"]
    run(cxx, *flags, "-x", "c++", HERE / "header_test.c", "-x", "none", *compile_law(tmp_path), "-o", tmp_path / "header")
    run(tmp_path / "header")


@pytest.mark.parametrize("header", sorted(path.relative_to(ROOT / "csrc").as_posix() for path in (ROOT / "csrc").rglob("*.h")))
@pytest.mark.parametrize("language", ["c", "c++"])
def test_every_header_alone(tmp_path, header, language):
    """A header would rely on what another file includes before it."""
    names = ("CC", "cc", "gcc", "clang") if language == "c" else ("CXX", "c++", "g++", "clang++")
    source = tmp_path / "alone.c"
    source.write_text(f'#include "{header}"\nint main(void) {{ return 0; }}\n', encoding="utf-8")
    standard = "-std=c11" if language == "c" else "-std=c++17"
    include = ["-I", ROOT / "csrc", "-I", ROOT / "csrc" / "include"]
    run(compiler(*names), "-x", language, standard, *WARNINGS, *include, "-fsyntax-only", source)


def test_law_under_sanitizers(tmp_path):
    """A result would differ from the 128-bit oracle, or the C code would leave its arrays or defined behaviour."""
    cc = compiler("CC", "cc", "gcc", "clang")
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    linked = subprocess.run([cc, *SANITIZERS, probe, "-o", tmp_path / "probe"], capture_output=True, text=True, check=False)
    if linked.returncode or subprocess.run([tmp_path / "probe"], capture_output=True, check=False).returncode:
        pytest.skip(f"{cc} has no address and undefined-behaviour sanitizer here")
    include = ["-I", ROOT / "csrc" / "include", "-I", ROOT / "csrc"]
    run(cc, "-std=c11", *WARNINGS, *SANITIZERS, *include, HERE / "arith_test.c", *LAW, "-o", tmp_path / "arith_test")
    assert int(run(tmp_path / "arith_test")) > 500_000


@pytest.mark.parametrize("optimization", ["-O0", "-O2", "-O3"])
def test_law_needs_no_float_register(tmp_path, optimization):
    """The law would touch a float or vector register, or divide."""
    if platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
        pytest.skip(f"no list of float instructions for {platform.machine()}")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    objects = compile_law(tmp_path, optimization, "-mgeneral-regs-only")
    code = [line for path in objects for line in instructions(path)]
    assert len(code) > 300
    assert float_or_division(code) == []
    assert [line for line in code if re.search(r"%[xyz]mm|%st", line)] == []


def test_law_computes_no_float_when_vectorized(tmp_path):
    """The compiler would turn an integer loop of the law into float arithmetic when it may use vector registers."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the flags of this test are for x86-64, this is {platform.machine()}")
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    code = [line for path in compile_law(tmp_path, "-O3", "-mavx2") for line in instructions(path)]
    assert any("%ymm" in line for line in code)
    assert float_or_division(code) == []


@pytest.mark.parametrize("expression", ["a / b", "(long)((double)a * 0.5)", "a % (b | 1)", "(long)((float)a + (float)b)"])
def test_disassembly_check_sees_what_it_forbids(tmp_path, expression):
    """The check above would pass whatever the code does."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    source = tmp_path / "bad.c"
    source.write_text(f"long bad(long a, long b) {{ return {expression}; }}\n", encoding="utf-8")
    run(compiler("CC", "cc", "gcc", "clang"), "-O2", "-c", source, "-o", tmp_path / "bad.o")
    assert float_or_division(instructions(tmp_path / "bad.o")) != []
