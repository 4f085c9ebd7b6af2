# SPDX-License-Identifier: Apache-2.0
"""The native module: the arithmetic law and bit packing in C, bytes equal to `intonly.core`.

Arguments that do not fit together raise `intonly.core.errors.BackendError` (backend "native"), which names the argument,
what was expected and what came. Arrays that are not contiguous are copied; the work runs without the interpreter lock.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

def law_version() -> int:
    """Return the version of the law that the C code follows; equal to `core.arith.LAW_VERSION`."""

def requantize(
    acc: npt.NDArray[Any],
    multiplier: npt.NDArray[np.int32],
    shift: npt.NDArray[np.int8],
    zero_point: int,
    lo: int,
    hi: int,
    x_zero: npt.NDArray[np.int32] | None = None,
    residual: npt.NDArray[Any] | None = None,
    residual_multiplier: npt.NDArray[np.int32] | None = None,
    residual_zero: int = 0,
    fraction_bits: int = 0,
    residual_shift: npt.NDArray[np.int8] | None = None,
) -> npt.NDArray[Any]:
    """Return what `Rescale.apply` returns, in the smallest type that holds lo..hi (unsigned when lo >= 0).

    The keyword arguments are the entries of `Rescale.to_arrays()` and `Rescale.to_json()`. Exactness: bit-exact.

    Args:
        acc: accumulators or codes, any integer type up to int64 (not uint64), in the narrow form up to int32 (not
            uint32); any shape.
        multiplier, shift, residual_multiplier, residual_shift: one shape: (), (C,) along the last axis, or (H, W, 1).
        x_zero: () or (C,); None = 0.
        residual: codes of at most 16 bits, shape of `acc`; goes together with `residual_multiplier`, and in the narrow
            form with `residual_shift`.
        fraction_bits: 0 for the wide form, 4..7 for the narrow.
    """

def floor_div(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return floor(a / b) of the true quotient; `b` is 1 or more, of shape () or that of `a`. Exactness: bit-exact."""

def isqrt(a: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return floor(sqrt(a)) of the true root, for a >= 0. Exactness: bit-exact."""

def pack(codes: npt.NDArray[Any], bits: int, qmin: int, qmax: int) -> npt.NDArray[np.uint8]:
    """Return what `NumberFormat.pack` returns for a format of 1 to 8 bits.

    Args:
        codes: int8 when qmin < 0, else uint8; any shape, C order.
    """

def unpack(packed: npt.NDArray[np.uint8], count: int, bits: int, qmin: int, qmax: int) -> npt.NDArray[Any]:
    """Return what `NumberFormat.unpack` returns for a format of 1 to 8 bits: int8 when qmin < 0, else uint8."""

STEPS: dict[str, tuple[int, tuple[tuple[str, int], ...]]]
"""Every kind of step of a program (csrc/exec/program.h): name -> (number, fields in order as (name, words))."""

def isas() -> list[str]:
    """Return the instruction sets that this machine and this build have, "scalar" first, the best last."""

def best_isa() -> str:
    """Return the last of `isas()`."""

def codes_of_reals(
    x: npt.NDArray[Any],
    scale: float,
    zero_point: int,
    lo: int,
    hi: int,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    axis: int = 1,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any] | None:
    """Return clamp(floor((x - mean) / std / scale + 1/2) + zero_point, lo, hi) in double precision; None when `x` holds NaN.

    In the smallest type that holds lo..hi (unsigned when lo >= 0). Infinities saturate. Exactness: bit-exact.

    Args:
        x: float32 or float64, any shape.
        scale, std: positive and finite. lo, hi, zero_point: of 32 bits.
        mean, std: one entry, or one for each entry of `axis`.
        out: where the codes go; None = a new array.
    """

def peak_macs(isa: str, iterations: int) -> int:
    """Run a loop of dot products in registers and return how many multiply-accumulates that were; the caller takes the time.

    0 = there is no such loop for this instruction set here.
    """

def isa_facts(isa: str) -> dict[str, int]:
    """Return what a planner must know.

    Returns:
        wants_signed: whether gemm and window take int8 (1), uint8 (0) or both (-1) where codes have 8 bits.

    Raises:
        BackendError: when this machine or this build has no such instruction set.
    """

def attention_scratch(keys: int, depth: int, width: int) -> int:
    """Return the bytes, a multiple of 64, that each part of a step of attention needs for itself."""

def aligned_bytes(size: int) -> npt.NDArray[np.uint8]:
    """Return zeros, shape (size,), aligned to 64 bytes, with bytes behind them that kernels may read.

    The constants of a program must be such an array, or a slice of one that begins at a multiple of 64 bytes.
    """

def gemm_pack(
    isa: str,
    w: npt.NDArray[np.int8],
    tap_bytes: int,
    bias: npt.NDArray[np.int32],
    form: int,
    multiplier: npt.NDArray[np.int32] | None,
    shift: npt.NDArray[np.int8] | None,
    residual_multiplier: npt.NDArray[np.int32] | None,
    residual_shift: npt.NDArray[np.int8] | None,
    fraction_bits: int,
    acc_limit: int,
    x_signed: bool,
    x_words: bool = False,
) -> npt.NDArray[np.uint8] | None:
    """Return the packed form of a gemm's constants for one instruction set, or None when it has no kernel for them.

    The result is made by `aligned_bytes`; its size is a multiple of 64, and in the constants it stands at one.

    Args:
        w: (channels, taps, depth).
        tap_bytes: bytes of x that a tap reads, a multiple of 4, at least those of the depth.
        bias: (channels,), with the zero points of x and w folded in.
        form: 0 accumulators, 1 wide, 2 narrow; multiplier and shift, (channels,), go with 1 and 2.
        residual_multiplier, residual_shift: (channels,), of the residual that joins; residual_shift in form 2 only.
        fraction_bits: of form 2, else 0.
        acc_limit: no |accumulator| exceeds it, whatever x is.
        x_signed: whether x is int8, else uint8. x_words: whether it is int16 instead.

    Raises:
        BackendError: when arguments do not fit together.
    """

def depthwise_pack(
    isa: str,
    w: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int32],
    form: int,
    multiplier: npt.NDArray[np.int32] | None,
    shift: npt.NDArray[np.int8] | None,
    residual_multiplier: npt.NDArray[np.int32] | None,
    residual_shift: npt.NDArray[np.int8] | None,
    fraction_bits: int,
    acc_limit: int,
    x_signed: bool,
) -> npt.NDArray[np.uint8] | None:
    """Return what `gemm_pack` returns, for a window of op 0: w is (channels, taps)."""

class Program:
    """A checked program. Any number of threads may run it at once; each run has an arena and a team of its own.

    Args:
        words: (words,), the steps one after another (csrc/exec/program.h); copied.
        constants: made by `aligned_bytes`; kept by reference, made read-only, shared by any number of programs.
        arena_bytes: size of the arena, without the bytes behind it that kernels may read.
        inputs, outputs: (name, type, shape) of the caller's arrays, spaces 2, 3, ... in this order. type: "int8",
            "uint8", "int16", "uint16", "int32", "uint32" or "int64"; every extent is 1 or more.
        isa: whose kernels run it, one of `isas()`.

    Raises:
        BackendError: when a step breaks a rule of csrc/exec/exec.h; the message says which step and which rule.
    """

    def __init__(
        self,
        words: npt.NDArray[np.int64],
        constants: npt.NDArray[np.uint8],
        arena_bytes: int,
        inputs: Sequence[tuple[str, str, Sequence[int]]],
        outputs: Sequence[tuple[str, str, Sequence[int]]],
        isa: str,
    ) -> None: ...
    def run(
        self, inputs: Sequence[npt.NDArray[Any]], outputs: Sequence[npt.NDArray[Any]] | None = None, threads: int = 1, pieces: int = 1
    ) -> list[npt.NDArray[Any]]:
        """Return the outputs, which are `outputs` where given. The bytes do not depend on `threads` (1..64).

        With `pieces` above 1 the first axis of every array is so many times as long, and the program runs on one piece
        after another, in one call.

        The first runs of a thread count make what they need, or `reserve` does; after that only outputs are allocated.

        Raises:
            BackendError: when an array has another type or shape, is not contiguous or aligned, is read-only (outputs),
                or shares memory with an output.
        """

    def bind(
        self, inputs: Sequence[npt.NDArray[Any]], outputs: Sequence[npt.NDArray[Any]] | None = None, threads: int = 1, pieces: int = 1
    ) -> BoundRun:
        """Return a call without arguments that runs on these arrays; checked once, so it costs a fraction of a microsecond."""

    def reserve(self, contexts: int = 1, threads: int = 1) -> None:
        """Make what `contexts` runs at once with this many threads need."""

    def profile(self, inputs: Sequence[npt.NDArray[Any]], repeats: int = 10, threads: int = 1) -> npt.NDArray[np.int64]:
        """Return the nanoseconds of each step, shape (steps,): the least of `repeats` runs, each step by itself."""

    @property
    def arena_bytes(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def waits(self) -> int:
        """Before how many steps the threads of a team wait for each other; the others run beside the steps before them."""

    @property
    def isa(self) -> str: ...

class BoundRun:
    """A program with its arrays; see `Program.bind`. Calls from several threads run one after another."""

    def __call__(self) -> None: ...
    @property
    def outputs(self) -> list[npt.NDArray[Any]]: ...
