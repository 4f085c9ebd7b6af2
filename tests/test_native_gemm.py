# SPDX-License-Identifier: Apache-2.0
"""Matrix products from Python: packed weights give the same product on every instruction set and number of threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intonly.core.errors import BackendError
from tests.test_native_program import FIRST, S16, S32, SPACE, U8, step

native = pytest.importorskip("intonly._native", reason="the native module is not built; run `make venv`")


def linear(isa: str, x: np.ndarray, w: np.ndarray, bias: np.ndarray, offset: int = 0, **constants: Any) -> np.ndarray:
    """Return x @ w.T + bias by a gemm step; the codes of `x` are uint8 or int16. offset: of the one tap."""
    (rows, depth), channels = x.shape, w.shape[0]
    tap_bytes = depth * x.itemsize
    names = {"form": 0, "multiplier": None, "shift": None, "residual_multiplier": None, "residual_shift": None, "fraction_bits": 0}
    packing = {**names, "acc_limit": 10**8, "x_signed": False, "x_words": x.itemsize == 2, **constants}
    packed = native.gemm_pack(isa, w[:, None, :], tap_bytes, bias, **packing)
    assert packed.size % 64 == 0
    block = native.aligned_bytes(64 + packed.size)
    block[:8].view(np.int64)[0] = offset
    block[64:] = packed
    size, kind = (4, S32) if packing["form"] == 0 else (1, U8)
    words = step(
        "gemm",
        parts=8,
        x_ref=FIRST,
        x_type=U8 if x.itemsize == 1 else S16,
        x_n=0,
        x_h=0,
        x_w=tap_bytes,
        y_ref=FIRST + SPACE,
        y_type=kind,
        y_n=0,
        y_h=0,
        y_w=channels * size,
        n=1,
        oh=1,
        ow=rows,
        oc=channels,
        taps=1,
        tap_bytes=tap_bytes,
        tap_offsets=0,
        packed=64,
        packed_bytes=packed.size,
        form=packing["form"],
        lo=0,
        hi=255 if size == 1 else 0,
        fraction_bits=packing["fraction_bits"],
    )
    outputs = [("y", "int32" if size == 4 else "uint8", (rows, channels))]
    program = native.Program(np.array(words, np.int64), block, 0, [("x", x.dtype.name, x.shape)], outputs, isa)
    results = [program.run([x], threads=threads)[0] for threads in (1, 2, 3)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    return results[0]


@pytest.mark.parametrize("isa", native.isas())
def test_gemm(isa):
    """Packing and kernel would not fit together."""
    rng = np.random.default_rng(8)
    x = rng.integers(0, 256, (37, 24)).astype(np.uint8)
    w = rng.integers(-127, 128, (70, 24)).astype(np.int8)
    bias = rng.integers(-(10**5), 10**5, 70).astype(np.int32)
    acc = x.astype(np.int64) @ w.T.astype(np.int64) + bias
    np.testing.assert_array_equal(acc, linear(isa, x, w, bias))
    narrow = {"form": 2, "multiplier": np.full(70, 1 << 14, np.int32), "shift": np.full(70, 3, np.int8), "fraction_bits": 6}
    t = np.clip((acc + 4) >> 3, -32768, 32767)
    y = np.clip((((t << 14) + (1 << 14) >> 15) + 32) >> 6, 0, 255)
    assert (y > 0).mean() > 0.2 and (y < 255).mean() > 0.5
    np.testing.assert_array_equal(y, linear(isa, x, w, bias, **narrow))


@pytest.mark.parametrize("isa", native.isas())
def test_gemm_of_16_bits(isa):
    """A kernel would saturate where two products of the largest codes and weights meet, or read a code from its second byte."""
    rng = np.random.default_rng(9)
    x = rng.choice(np.array([-32768, 32767], np.int16), (37, 22))
    w = rng.choice(np.array([-128, 127], np.int8), (70, 22))
    x[0], w[0] = -32768, -128
    bias = rng.integers(-(10**5), 10**5, 70).astype(np.int32)
    np.testing.assert_array_equal(x.astype(np.int64) @ w.T.astype(np.int64) + bias, linear(isa, x, w, bias))
    with pytest.raises(BackendError, match="tap_offsets must be int64 constants, multiples of a code"):
        linear(isa, x, w, bias, offset=-1)


def test_packing_that_does_not_fit():
    """Packed constants would hold what their caller did not mean."""
    w, bias, m, s = np.zeros((8, 1, 4), np.int8), np.zeros(8, np.int32), np.zeros(8, np.int32), np.ones(8, np.int8)
    rest = {"residual_multiplier": None, "residual_shift": None, "fraction_bits": 0, "acc_limit": 100, "x_signed": True}
    plain = {"form": 0, "multiplier": None, "shift": None, **rest}
    assert native.gemm_pack("scalar", w, 4, bias, **plain) is not None
    assert native.gemm_pack("scalar", w, 4, bias, **{**plain, "acc_limit": 1 << 40}) is None
    assert native.depthwise_pack("scalar", w[:, 0], bias, **plain) is not None
    for message, call in {
        r"w must have the axes \(channels, taps, depth\)": lambda: native.gemm_pack("scalar", w[0], 4, bias, **plain),
        "w must be int8, got uint8": lambda: native.gemm_pack("scalar", w.astype(np.uint8), 4, bias, **plain),
        "w is empty": lambda: native.gemm_pack("scalar", w[:0], 4, bias[:0], **plain),
        "tap_bytes must be a multiple of 4 and at least the depth 4, got 2": lambda: native.gemm_pack("scalar", w, 2, bias, **plain),
        "at least twice the depth 4, got 4": lambda: native.gemm_pack("scalar", w, 4, bias, **{**plain, "x_words": True}),
        r"bias must have shape \(8,\), got \(7,\)": lambda: native.gemm_pack("scalar", w, 4, bias[:7], **plain),
        "form must be 0, 1 or 2, got 3": lambda: native.gemm_pack("scalar", w, 4, bias, **{**plain, "form": 3}),
        "multiplier and shift go with forms": lambda: native.gemm_pack("scalar", w, 4, bias, **{**plain, "form": 1}),
        "residual_multiplier goes with forms": lambda: native.gemm_pack("scalar", w, 4, bias, **{**plain, "residual_multiplier": m}),
        "residual_shift goes with residual_multiplier": lambda: native.gemm_pack(
            "scalar", w, 4, bias, **{**rest, "form": 2, "multiplier": m, "shift": s, "residual_multiplier": m}
        ),
        "shift must be int8, got int32": lambda: native.gemm_pack("scalar", w, 4, bias, **{**rest, "form": 1, "multiplier": m, "shift": m}),
        r"depthwise_pack: w must have the axes \(channels, taps\)": lambda: native.depthwise_pack("scalar", w, bias, **plain),
    }.items():
        with pytest.raises(BackendError, match=message):
            call()
