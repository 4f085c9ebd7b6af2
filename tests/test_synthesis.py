# SPDX-License-Identifier: Apache-2.0
"""Samples without data as callers meet them: units, layouts, files, and "synthetic" wherever data are read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks run in PyTorch")
from torch import nn  # noqa: E402

import intonly  # noqa: E402
from intonly.core.errors import DataError  # noqa: E402
from intonly.data import load_data, synthetic_count  # noqa: E402
from intonly.processes import Processes  # noqa: E402
from intonly.synthesis import ABOUT, samples_of  # noqa: E402
from tests.small_nets import IMAGES, MEAN, STD, Normalized, SmallNet  # noqa: E402

SHORT = {"steps": 8, "batch": 8}
EXAMPLE = (torch.zeros(2, 3, 8, 8),)


def small(spec: intonly.InputSpec = IMAGES, net: nn.Module | None = None) -> intonly.FloatModel:
    """Return a captured network with a batch norm."""
    return intonly.load((net or SmallNet()).eval(), inputs=spec, example_inputs=EXAMPLE)


def test_images_are_codes_in_the_layout_of_the_spec():
    """Calibration would see samples in other units, or with other axes, than those that callers hand in."""
    first = intonly.synthesize(small(), 10, **SHORT)
    last = intonly.synthesize(small(intonly.InputSpec("", "NHWC", "uint8", MEAN, STD)), 10, **SHORT)
    x = next(iter(first.arrays.values()))
    assert (x.dtype, x.shape) == (np.uint8, (10, 3, 8, 8))
    assert np.array_equal(next(iter(last.arrays.values())), x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(x.mean((0, 2, 3)), MEAN, atol=20)
    np.testing.assert_allclose(x.std((0, 2, 3)), STD, rtol=0.3)


def test_reals_are_in_the_units_of_the_spec():
    """Real samples would be handed in normalized, and be normalized a second time."""
    x = next(iter(intonly.synthesize(small(intonly.InputSpec("", "", "float32", MEAN, STD)), 8, **SHORT).arrays.values()))
    plain = next(iter(intonly.synthesize(small(intonly.InputSpec()), 8, **SHORT).arrays.values()))
    mean, std = (np.reshape(v, (3, 1, 1)) for v in (MEAN, STD))
    assert x.dtype == plain.dtype == np.float32
    np.testing.assert_allclose(x, plain * std + mean, rtol=1e-5, atol=1e-3)


def test_normalization_inside_the_network_counts():
    """A network that normalizes its images itself would be shown images of another brightness and contrast."""
    inside = intonly.synthesize(small(intonly.InputSpec(dtype="uint8"), Normalized(SmallNet())), 8, **SHORT)
    outside = intonly.synthesize(small(), 8, **SHORT)
    a, b = (next(iter(made.arrays.values())).astype(int) for made in (inside, outside))
    assert (a == b).mean() > 0.99
    assert inside.report.loss_end == pytest.approx(outside.report.loss_end, rel=1e-3)


def test_8_bit_inputs_without_normalization_are_taken_for_images():
    """A network that reads 0..255 as they are would be shown images that are black but for the last bits."""
    x = next(iter(intonly.synthesize(small(intonly.InputSpec(dtype="uint8")), 8, steps=1, batch=8).arrays.values()))
    assert 100 < x.mean() < 155 and 45 < x.std() < 85


def test_a_network_with_a_fixed_batch_gets_as_many_samples_as_asked():
    """A file that fixes a batch of 1 could not be quantized without data, or its samples would not fit it."""
    source = small()
    values = {k: replace(v, shape=(1, *v.shape[1:])) if k not in source.graph.params else v for k, v in source.graph.values.items()}
    fixed = replace(source, graph=source.graph.replace(values=values))
    made = intonly.synthesize(fixed, 6, **SHORT)
    assert made.report.settings["batch"] == 8 and len(made) == 6
    assert next(iter(made.arrays.values())).tobytes() == next(iter(intonly.synthesize(source, 6, **SHORT).arrays.values())).tobytes()
    assert intonly.quantize(fixed, "w8a8", made).graph.values[source.specs[0].name].shape[0] == 1


def test_the_file_is_ordinary_data_that_says_how_it_was_made(tmp_path):
    """A saved set could not be read as data, or nobody would know later what it is."""
    source = small()
    made = intonly.synthesize(source, 9, seed=5, **SHORT)
    made.save(tmp_path / "a.npz")
    made.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read = load_data(tmp_path / "a.npz", source.specs)
    (name,) = made.arrays
    assert np.array_equal(read.arrays[name], made.arrays[name]) and read.labels is None
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        about = json.loads(str(file[ABOUT]))
    assert (about["seed"], about["count"], about["network"]) == (5, 9, made.report.network)
    assert about["settings"]["steps"] == 8
    assert [norm["origin"] for norm in about["norms"]] == ["bn1"]


def test_synthetic_stands_for_samples_wherever_data_are_read():
    """The word would be taken for a path, or be made in another way than by `synthesize`."""
    source = small()
    made = intonly.synthesize(source, 12, seed=3)
    (name,) = made.arrays
    assert np.array_equal(samples_of(source, "synthetic:12", seed=3).arrays[name], made.arrays[name])
    assert len(samples_of(source, "synthetic:12", samples=5)) == 5
    recipe = {"weight_bits": 8, "seed": 3, "samples": 12}
    by_word, by_data = (intonly.quantize(source, recipe, data) for data in ("synthetic:12", made))
    assert by_word.artifact.to_bytes() == by_data.artifact.to_bytes()
    assert by_word.artifact.note.extra["samples"] == "12"


def test_search_and_analyze_take_synthetic():
    """The plan of a network without data could not be searched, nor its errors explained."""
    source = small()
    found = intonly.search(source, "size=100%", "synthetic:8", metric="sqnr", candidates=(4, 8), timed=False)
    assert found.chosen.agreement is not None
    q = intonly.quantize(source, found.plan, "synthetic:8")
    assert len(intonly.analyze(source, q, "synthetic:8").layers) == 4


@pytest.mark.parametrize(("text", "count"), [("synthetic", 64), ("synthetic:7", 7), ("synthetics.npz", None), ("data.npz", None)])
def test_which_words_mean_synthetic(text, count):
    """A file's name would be taken for the word, or the number of samples be lost."""
    assert synthetic_count(text) == count


@pytest.mark.parametrize("text", ["synthetic:", "synthetic:0", "synthetic:-3", "synthetic:many"])
def test_a_wrong_number_of_samples_is_named(text):
    """A slip would end in samples that nobody asked for, or in a message about a path."""
    with pytest.raises(DataError, match=r"synthetic:N with a number"):
        synthetic_count(text)


def test_what_cannot_be_synthesized_is_said():
    """A user would be left with noise, or with an error from inside PyTorch."""
    q = intonly.quantize(small(), "w8a8", "synthetic:4")
    bare = intonly.load(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), example_inputs=EXAMPLE)
    with pytest.raises(DataError, match="no batch norm"):
        intonly.quantize(bare, "w8a8", "synthetic")
    with pytest.raises(DataError, match="quantized already"):
        intonly.synthesize(q)
    with pytest.raises(DataError, match=r"give example_inputs \(--input-shape\)"):
        intonly.quantize(SmallNet().eval(), "w8a8", "synthetic")
    with pytest.raises(DataError, match="intonly synthesize"):
        intonly.evaluate(q, "synthetic", against=small())
    with pytest.raises(DataError, match="count must be 1 or more"):
        intonly.synthesize(small(), 0)
    with pytest.raises(DataError, match="steps and batch"):
        intonly.synthesize(small(), 4, steps=0)
    with pytest.raises(DataError, match="start must be"):
        intonly.synthesize(small(), 4, start="zero")


SCRIPT = """
import sys
from intonly.processes import processes
from tests.test_synthesis import shared
with processes() as mine:
    shared(mine).save(sys.argv[1] + f"/{mine.rank}.npz")
"""


def shared(mine: Processes):
    """Return three batches that the processes share."""
    return intonly.synthesize(small(), 20, processes=mine, seed=2, **SHORT)


def test_two_processes_make_the_bytes_of_one(tmp_path):
    """Samples would depend on how many machines made them, or one process would lack those of the other."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch was built without torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[1]
    paths = os.pathsep.join([str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **group, "PYTHONPATH": paths}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    started = [subprocess.Popen(command, env={**env, "RANK": str(r)}, cwd=root, stderr=subprocess.PIPE, text=True) for r in (0, 1)]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    shared(Processes()).save(tmp_path / "alone.npz")
    alone = (tmp_path / "alone.npz").read_bytes()
    assert (tmp_path / "0.npz").read_bytes() == alone
    assert (tmp_path / "1.npz").read_bytes() == alone
