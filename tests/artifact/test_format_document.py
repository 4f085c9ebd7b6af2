# SPDX-License-Identifier: Apache-2.0
"""docs/format.md states the numbers that the code follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from intonly.artifact import container, golden, packing, schema, strict_json
from tests.artifact.networks import artifact, random_network
from tests.artifact.plain_reader import golden_code

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


def test_the_first_bytes():
    """Files would not be recognised by what the document says."""
    assert f"{len(container._PREFIX)} bytes `{container._PREFIX}`" in TEXT
    data = artifact(random_network(1)).to_bytes()
    assert data[8:].startswith(container._PREFIX.encode())
    assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0
    assert f"This is format version {container.FORMAT_VERSION}." in TEXT


def test_limits():
    """A writer that keeps to the document would be refused."""
    powers = {
        container.MAX_HEADER_BYTES: 23,
        strict_json.MAX_ITEMS: 20,
        schema.MAX_NODES: 14,
        schema.MAX_CHANNELS: 24,
        schema.MAX_ELEMENTS: 28,
        packing.MAX_SMALL: 24,
        packing.MAX_CONSTANTS: 20,
        golden.MAX_INPUT: 26,
    }
    for value, exponent in powers.items():
        assert value == 1 << exponent
        assert f"2^{exponent}" in TEXT
    assert (strict_json.MAX_DEPTH, schema.MAX_RANK, schema.MAX_EXTENT, schema.MAX_BODIES) == (64, 8, 2**31 - 1, 4)
    assert f"Parameters of {packing.LARGE_COUNT} codes or more, in a format of {packing.LARGE_BITS} bits or fewer" in TEXT


def test_the_worked_example():
    """A programmer who checks the generator against the example would look for a mistake that is not there."""
    codes = [golden_code(1, 0, i, 0, 255) for i in range(8)]
    assert " ".join(map(str, codes)) in TEXT
    for constant in (golden.STEP, golden.MIX_1, golden.MIX_2):
        assert f"0x{constant:X}" in TEXT


@pytest.mark.parametrize("name", schema.DEFAULTS)
def test_defaults_are_documented(name: str):
    """A reader would not know what an attribute that is left out holds."""
    assert f"`{name}`" in TEXT


def test_fields_of_a_rescale_are_documented():
    """A reader would take one field of a rescale for another."""
    assert ", ".join(schema.RESCALE_FIELDS) in TEXT
