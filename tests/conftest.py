# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all tests share."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from intonly.core import arith


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Return random numbers that depend on nothing but the name of the test."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def single_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower to the wide form only, which rounds once, as the simulation of a quantized graph does."""
    monkeypatch.setattr(arith, "fraction_bits", lambda reach: 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the switch that rewrites golden files."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden; review the difference like code")
