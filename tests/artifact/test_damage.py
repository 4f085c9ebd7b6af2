# SPDX-License-Identifier: Apache-2.0
"""Damaged files: cut, flipped, enlarged, or no files of ours at all. A clear error each time, at once, in little memory."""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest

from intonly.artifact import load_artifact, save_artifact
from intonly.artifact.container import FORMAT_VERSION
from intonly.core.errors import ArtifactError
from intonly.core.number_format import UINT8
from tests.artifact.forge import header_of, resealed, with_header
from tests.artifact.networks import Builder, artifact, composite, random_network

FLIPS = 4000
SECONDS_EACH = 0.02
PEAK_BYTES = 4 << 20


@pytest.fixture(scope="module")
def small_file() -> bytes:
    """A real file of a few kilobytes."""
    data = artifact(composite()).to_bytes()
    assert 1000 < len(data) < 20_000
    return data


def refused(data: bytes) -> str:
    """Return the sentence with which `data` is refused."""
    with pytest.raises(ArtifactError) as caught:
        load_artifact(data)
    message = str(caught.value)
    assert "inconsistent (" not in message, "a rule is missing; only the last resort caught this"
    assert len(message) < 600
    return message


def test_every_flipped_byte_is_noticed(small_file: bytes):
    """A file damaged in transport would load with another weight in it."""
    rng = random.Random(1)
    tracemalloc.start()
    begin = time.perf_counter()
    for position in [*range(200), *(rng.randrange(len(small_file)) for _ in range(FLIPS)), *range(len(small_file) - 100, len(small_file))]:
        damaged = bytearray(small_file)
        damaged[position] ^= 1 << rng.randrange(8)
        refused(bytes(damaged))
    seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds / (FLIPS + 300) < SECONDS_EACH
    assert peak < PEAK_BYTES


def test_every_truncation_is_noticed(small_file: bytes):
    """A download that broke off would load, or crash the program."""
    tracemalloc.start()
    for size in [*range(300), *range(300, len(small_file), 7)]:
        refused(small_file[:size])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < PEAK_BYTES
    for extra in (b"\0", b" " * 8, small_file):
        assert "checksum" in refused(small_file + extra)


def test_garbage_is_refused(small_file: bytes):
    """Any other file given by mistake would end in a traceback or fill the memory."""
    rng = random.Random(2)
    tracemalloc.start()
    for _ in range(2000):
        garbage = rng.randbytes(rng.randrange(400))
        assert refused(garbage) == "is no .intonly file"
        length = rng.choice((0, 1, len(garbage), 1 << 20, 1 << 40, (1 << 64) - 1))
        refused(length.to_bytes(8, "little") + small_file[8 : rng.randrange(8, 400)] + garbage)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < PEAK_BYTES


def test_a_block_of_zeros_is_noticed(small_file: bytes):
    """A sector that the disk lost would be read as weights of 0."""
    for start in range(0, len(small_file) - 64, 512):
        refused(small_file[:start] + bytes(64) + small_file[start + 64 :])


def test_memory_follows_the_size_of_the_file():
    """Loading would need many times the memory of the network."""
    net = Builder(0, bits=4)
    net.origin = "fc"
    x = net.input((1, 2048), UINT8)
    y = net.emit("matmul", [x, net.weight((1024, 2048)), net.bias(1024)], {"a_zero_point": 0, "b_zero_point": 0, "rescale": None})
    data = artifact(net.integer_graph([y], ["x"])).to_bytes()
    assert len(data) > 1 << 20
    tracemalloc.start()
    load_artifact(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * (1024 * 2048) + (6 << 20)


def test_versions_are_named():
    """A newer file would be misread, or called damaged."""
    data = artifact(random_network(1)).to_bytes()
    newer = data.replace(f'"format_version":"{FORMAT_VERSION}"'.encode(), b'"format_version":"7"', 1)
    assert "format version 7" in refused(newer)
    assert f"reads {FORMAT_VERSION}" in refused(newer)
    assert "version '7' of the arithmetic law" in refused(with_header(data, lambda h: h["__metadata__"].update(law_version="7")))
    assert header_of(data)["__metadata__"]["format_version"] == str(FORMAT_VERSION)


def test_paths_that_are_no_files(tmp_path: Path):
    """A device, a folder or a missing file would hang the program or end in a traceback."""
    for path in (tmp_path, tmp_path / "missing", Path(os.devnull), "bad\0name"):
        with pytest.raises(ArtifactError, match=r"is no file|cannot be read"):
            load_artifact(path)
    if Path("/dev/zero").exists():
        with pytest.raises(ArtifactError, match="is no file"):
            load_artifact("/dev/zero")
    (tmp_path / "empty.intonly").touch()
    with pytest.raises(ArtifactError, match=r"empty\.intonly: is no \.intonly file"):
        load_artifact(tmp_path / "empty.intonly")


def test_the_message_names_the_file(tmp_path: Path):
    """A user with many files would not know which one to copy again."""
    path = tmp_path / "net.intonly"
    save_artifact(path, artifact(random_network(1)))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match=r"net\.intonly: is damaged: its checksum"):
        load_artifact(str(path))


def test_bytes_of_every_kind_load(small_file: bytes):
    """A file mapped into memory or received over a network could not be read."""
    for source in (small_file, bytearray(small_file), memoryview(small_file)):
        assert load_artifact(source).to_bytes() == small_file
    assert load_artifact(resealed(small_file, {})).to_bytes() == small_file
