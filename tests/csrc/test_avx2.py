# SPDX-License-Identifier: Apache-2.0
"""The kernels on 256-bit vectors give the law's bytes, stay in their arrays, and hold no float and no division."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc.test_csrc import HERE, ROOT, SANITIZERS, WARNINGS, compiler, run
from tests.disassembly import float_or_division, instructions

INCLUDE = ["-I", ROOT / "csrc", "-I", ROOT / "csrc" / "include"]
AVX2 = ["-mavx2"]
AVXVNNI = {"avx_vnni": ["-mavx2", "-mavxvnni"], "avx512_vnni": ["-mavx2", "-mavx512vl", "-mavx512vnni"]}
"""Flags of the AVX-VNNI kernels, by what the processor must have. AVX-512 processors run them in another encoding."""
PROGRAMS = {
    "shared": ["kernels_harness.c", "kernels_test.c", "kernels_images_test.c", "kernels_general_test.c", "kernels_rows_test.c"],
    "own": ["kernels_harness.c", "avx2_test.c"],
    "guarded": sorted(path.name for path in HERE.glob("guarded_*.c")),
}
"""What is tested over the tables of tables_256.c, by program."""

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these kernels are for x86-64")


def processor() -> set[str]:
    """Return what this processor has; skip where that cannot be told, or it has no AVX2."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo that tells what this processor has")
    line = next(line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("flags"))
    flags = set(line.split())
    if "avx2" not in flags:
        pytest.skip("this processor has no AVX2")
    return flags


def vnni(cc: str) -> list[str] | None:
    """Return the flags of AVX-VNNI kernels that this processor runs, None when it runs none."""
    found = next((flags for name, flags in AVXVNNI.items() if name in processor()), None)
    if found is None or ("avx512_vnni" in processor() and "avx512vl" not in processor()):
        return None
    known = subprocess.run([cc, *found, "-x", "c", "-fsyntax-only", "-"], input="", capture_output=True, text=True, check=False)
    return found if known.returncode == 0 else None


def kernels(isa: str) -> list[Path]:
    """Return the sources of one instruction set, or of plain C."""
    sources = sorted((ROOT / "csrc" / "kernels").rglob("*.c"))
    if isa:
        return [path for path in sources if path.name == f"x86_{isa}.c"]
    return [path for path in sources if not path.name.startswith(("x86_", "arm_")) and path.name != "dispatch.c"]


def build(folder: Path, cc: str, flags: list[str], groups: list[tuple[list[str], list[Path]]]) -> list[Path]:
    """Return the objects of sources, each group compiled with flags of its own."""
    objects = []
    for own, sources in groups:
        for source in sources:
            objects.append(folder / f"{source.parent.name}_{source.stem}.o")
            run(cc, "-std=c11", *WARNINGS, *flags, *own, *INCLUDE, "-c", source, "-o", objects[-1])
    return objects


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return the test programs over the tables of tables_256.c, built with sanitizers where there are such."""
    folder = tmp_path_factory.mktemp("avx2")
    cc = compiler("CC", "cc", "gcc", "clang")
    extra = vnni(cc)
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n", encoding="utf-8")
    made = subprocess.run([cc, *SANITIZERS, probe, "-o", folder / "probe"], capture_output=True, check=False)
    sound = made.returncode == 0 and subprocess.run([folder / "probe"], capture_output=True, check=False).returncode == 0
    flags = SANITIZERS if sound else ["-O2"]
    groups = [([], kernels("")), (AVX2, kernels("avx2"))]
    groups += [(extra, kernels("avxvnni"))] if extra else []
    groups += [(["-DINTONLY_HAVE_AVXVNNI"] if extra else [], [HERE / "tables_256.c"])]
    objects = build(folder, cc, flags, groups)
    for name, sources in PROGRAMS.items():
        run(cc, *flags, *objects, *build(folder, cc, flags, [([], [HERE / source for source in sources])]), "-o", folder / name)
    return {name: folder / name for name in PROGRAMS}


def test_kernels_keep_the_law(programs):
    """A kernel would give another byte than plain loops over exact integers, or touch memory that is not its own."""
    lines = run(programs["shared"], "200").splitlines()
    cases = {tuple(line.split()[:2]): int(line.split()[2]) for line in lines[:-1]}
    for isa in ["avx2", "avxvnni"] if vnni(compiler("CC", "cc", "gcc", "clang")) else ["avx2"]:
        assert all(cases[isa, test] > 100 for test in ("gemm", "depthwise", "window"))


def test_large_steps_as_in_plain_c(programs):
    """A kernel would lose a sum between blocks of K, saturate, or read a residual that it has overwritten."""
    lines = run(programs["own"], "200").splitlines()
    counts = {words[0]: dict(zip(words[1::2], map(int, words[2::2]), strict=True)) for words in map(str.split, lines)}
    least = {"cases": 400, "vectors": 101, "joined": 51, "upper": 21, "bits4": 21, "bits2": 11, "book16": 11, "words": 21}
    assert all(count[path] >= least[path] for count in counts.values() for path in least)
    assert all(counts["avx2"][path] > 10 for path in ("int16", "book16", "chain1", "chain2", "chain4", "chain8"))


def test_guarded_steps(programs):
    """A kernel would read behind a packed form or a tensor, or write another byte than sums in 64 bits give."""
    for isa in ["avx2", "avxvnni"] if vnni(compiler("CC", "cc", "gcc", "clang")) else ["avx2"]:
        assert int(run(programs["guarded"], isa, "300")) == 900


@pytest.mark.parametrize(("isa", "flags"), [("avx2", AVX2), ("avxvnni", AVXVNNI["avx_vnni"])])
def test_no_float_no_division(tmp_path, isa, flags):
    """A kernel would compute with a float or divide."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not on the path; it comes with binutils")
    cc = compiler("CC", "cc", "gcc", "clang")
    known = subprocess.run([cc, *flags, "-x", "c", "-fsyntax-only", "-"], input="", capture_output=True, text=True, check=False)
    if known.returncode:
        pytest.skip(f"{cc} does not know {flags[-1]}")
    code = [line for path in build(tmp_path, cc, ["-O3"], [(flags, kernels(isa))]) for line in instructions(path)]
    assert len(code) > 1000
    products = ["vpdpbusd", "vpdpwssd"] if isa == "avxvnni" else ["vpmaddubsw", "vpmaddwd"]
    assert all(any(product in line for line in code) for product in products)
    assert float_or_division(code) == []
    assert [line for line in code if "%zmm" in line] == []
