# SPDX-License-Identifier: Apache-2.0
"""Build the fuzzing harnesses of the C code."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HARNESS = Path(__file__).with_name("program.c")
COMMON = ["-std=c11", "-D_DEFAULT_SOURCE", "-O1", "-g", "-fno-omit-frame-pointer", "-DINTONLY_MOST_WORK=(INT64_C(1)<<18)"]
SANITIZERS = "address,undefined"
FLAGS = {
    "avx2": ["-mavx2"],
    "avxvnni": ["-mavx2", "-mavxvnni"],
    "avx512vnni": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx512vbmi"],
}


def _objects(compiler: str, folder: Path, flags: list[str]) -> tuple[list[Path], list[str]]:
    """Compile everything that a program runs; return the objects and the macros that say which kernels there are."""
    plain = [CSRC / "arith.c", CSRC / "pack.c", *sorted((CSRC / "exec").glob("*.c"))]
    plain += [p for p in sorted((CSRC / "kernels").rglob("*.c")) if not p.name.startswith(("x86_", "arm_"))]
    jobs = [(p, []) for p in plain if p.name != "dispatch.c"]
    macros: list[str] = []
    if platform.machine() in ("x86_64", "AMD64"):
        for isa, own in FLAGS.items():
            macros.append(f"-DINTONLY_HAVE_{isa.upper()}")
            jobs += [(p, own) for p in sorted((CSRC / "kernels").rglob(f"x86_{isa}.c"))]
    jobs.append((CSRC / "kernels" / "dispatch.c", macros))
    made = []
    for source, own in jobs:
        target = folder / ("_".join(source.relative_to(CSRC).parts) + ".o")
        _run(compiler, *COMMON, *flags, *own, "-I", CSRC, "-I", CSRC / "include", "-c", source, "-o", target)
        made.append(target)
    return made, macros


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"


def fuzzer(folder: Path) -> Path:
    """Return the harness as a libFuzzer program; skip when clang has no fuzzer here."""
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("clang is not on the path")
    probe = folder / "probe.c"
    probe.write_text("int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n) { return p != 0 && n == 1; }\n", encoding="utf-8")
    linked = subprocess.run([clang, "-fsanitize=fuzzer,address", probe, "-o", folder / "probe"], capture_output=True, check=False)
    if linked.returncode:
        pytest.skip("clang has no libFuzzer here; on Debian it comes with libclang-rt-dev")
    flags = [f"-fsanitize=fuzzer-no-link,{SANITIZERS}", "-fno-sanitize-recover=all"]
    objects, _ = _objects(clang, folder, flags)
    program = folder / "fuzz"
    link = [f"-fsanitize=fuzzer,{SANITIZERS}", "-fno-sanitize-recover=all", "-pthread"]
    _run(clang, *COMMON, *link, "-I", CSRC, "-I", CSRC / "include", HARNESS, *objects, "-o", program)
    return program


def replayer(folder: Path) -> Path:
    """Return the harness as a program that runs the files it is given, under sanitizers where the compiler has them."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("no compiler: none of cc, gcc, clang is on the path")
    flags = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-pthread"]
    objects, _ = _objects(compiler, folder, flags)
    program = folder / "replay"
    _run(compiler, *COMMON, *flags, "-DINTONLY_REPLAY", "-I", CSRC, "-I", CSRC / "include", HARNESS, *objects, "-o", program)
    return program
