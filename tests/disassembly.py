# SPDX-License-Identifier: Apache-2.0
"""Which instructions of an object file break the promise "integers only, no division". Shared by the tests of C code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

LINE = re.compile(r"^\s*[0-9a-f]+:\s+(\S.*)$", re.MULTILINE)
PREFIXES = {"bnd", "data16", "lock", "notrack", "rep", "repnz", "repz"}
FORBIDDEN = (
    re.compile(r"i?div[bwlq]?"),  # x86 integer division
    re.compile(r"f\w+"),  # x87; on ARM every scalar and vector float instruction
    re.compile(r"v?cvt\w*"),  # SSE and AVX: a conversion from or to float
    re.compile(r"v?(add|addsub|sub|mul|div|sqrt|r?sqrt\w*|rcp\w*|min|max|hadd|hsub|dp|round|rndscale|u?comi|cmp\w*)(ss|sd|ps|pd|sh|ph)"),
    re.compile(r"vf(n?m)\w+"),  # fused multiply and add
    re.compile(r"[us]div"),  # ARM integer division
    re.compile(r"[us]cvtf"),  # ARM conversion to float
)


def instructions(path: Path, objdump: str = "objdump") -> list[str]:
    """Return the instructions of an object file as text, in order. objdump: that of the machine the file is for."""
    listing = subprocess.run([objdump, "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
    return LINE.findall(listing)


def mnemonic(instruction: str) -> str:
    """Return the name of an instruction, without prefixes and operands."""
    words = [word for word in instruction.split() if word not in PREFIXES]
    return words[0] if words else instruction.strip()


def float_or_division(code: list[str]) -> list[str]:
    """Return the instructions that compute with a float or divide, each once."""
    return sorted({line for line in code if any(rule.fullmatch(mnemonic(line)) for rule in FORBIDDEN)})
