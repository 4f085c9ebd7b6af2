# SPDX-License-Identifier: Apache-2.0
"""The backend that a user picks for a network: the same arrays from each, and a clear word when it cannot run."""

from __future__ import annotations

import numpy as np
import pytest

from intonly import model
from intonly.core.errors import BackendError
from intonly.model import BACKENDS, QuantizedModel
from tests.artifact.networks import artifact, random_network, resnet8
from tests.backends.test_native_engine import random_inputs


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("build", [resnet8, lambda: random_network(1)], ids=["resnet8", "random"])
def test_every_backend_answers_the_same(build, backend) -> None:
    """A network would answer otherwise, or in other types, when it is loaded for another backend."""
    if backend == "torch":
        pytest.importorskip("torch", reason="the torch backend runs on PyTorch")
    made = artifact(build())
    inputs = random_inputs(made.graph, 5, 1)
    expected = QuantizedModel(made, backend="interpreter").run(inputs)
    actual = QuantizedModel(made, backend=backend).run(inputs)
    assert max(np.unique(y).size for y in expected.values()) > 3
    for name, y in expected.items():
        assert actual[name].dtype == y.dtype
        np.testing.assert_array_equal(actual[name], y)


def test_an_unknown_backend_is_refused() -> None:
    """A typing error would run some other backend."""
    with pytest.raises(BackendError, match="unknown backend 'tvm'; use native or interpreter or torch"):
        QuantizedModel(artifact(resnet8()), backend="tvm")


def test_a_backend_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users without PyTorch would see an ImportError from inside, at the first run."""
    monkeypatch.setattr(model, "find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"pip install intonly\[torch\]"):
        QuantizedModel(artifact(resnet8()), backend="torch")


def test_the_command_line_offers_every_backend():
    """A backend that Python has could not be asked for on the command line."""
    options = pytest.importorskip("intonly.cli.options")
    assert tuple(options.BackendName) == BACKENDS
