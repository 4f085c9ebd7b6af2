# SPDX-License-Identifier: Apache-2.0
"""Whole networks on the native engine: the same bytes for every instruction set, number of threads, batch size and caller."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the networks are calibrated in PyTorch")

from intonly import _native
from intonly.backends.interpreter import Interpreter
from intonly.backends.native import NativeEngine, chosen_isa, plan
from intonly.backends.native import engine as engine_module
from intonly.core.errors import BackendError
from intonly.core.graph import Graph
from tests.backends.test_native_engine import random_inputs
from tests.steps.graphs import PLAIN, journey
from tests.steps.random_nets import random_network, random_sequence_network
from tests.test_golden import branches, chain, residual

ISAS = _native.isas()
SEEDS = range(6)


def integer_graphs() -> dict[str, Graph]:
    """Return integer graphs of the golden networks, and of random ones at three recipes."""
    made = {build.__name__: journey(build(), PLAIN).integer for build in (chain, residual, branches)}
    recipes = {"w8a8": PLAIN, "w4a4": replace(PLAIN, weight_bits=4, activation_bits=4), "wide": replace(PLAIN, residual_bits=16)}
    for seed in SEEDS:
        for name, recipe in recipes.items():
            made[f"random{seed}-{name}"] = journey(random_network(seed), recipe).integer
    made.update({f"sequence{seed}": journey(random_sequence_network(seed), PLAIN).integer for seed in SEEDS})
    return made


GRAPHS = integer_graphs()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", list(GRAPHS))
def test_bytes_do_not_depend_on_how_a_network_is_run(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor, thread count or batch size would give another answer."""
    monkeypatch.setattr(plan, "WORK_WORTH_SHARING", dict.fromkeys(_native.STEPS, -1))  # every step is divided, however small
    graph = GRAPHS[name]
    inputs = random_inputs(graph, 5, 7)
    expected = Interpreter(graph).run(inputs)
    assert max(np.unique(y).size for y in expected.values()) > 3
    engines = [NativeEngine(graph, isa=isa, threads=threads) for threads in (1, 2, 3)]
    for engine in engines:
        for key, y in engine.run(inputs).items():
            np.testing.assert_array_equal(y, expected[key])
    for k in (0, 3):
        alone = engines[k % 2].run({key: x[k : k + 1] for key, x in inputs.items()})
        for key, y in alone.items():
            np.testing.assert_array_equal(y, expected[key][k : k + 1])


def test_several_callers_may_run_one_network() -> None:
    """Two runs at the same time would share an arena."""
    graph = GRAPHS["residual"]
    engine = NativeEngine(graph)
    inputs = [random_inputs(graph, 4, seed) for seed in range(8)]
    expected = [Interpreter(graph).run(x) for x in inputs]
    wrong: list[int] = []

    def call(k: int) -> None:
        for _ in range(50):
            made = engine.run(inputs[k])
            if any(not np.array_equal(made[key], y) for key, y in expected[k].items()):
                wrong.append(k)

    team = [threading.Thread(target=call, args=(k,)) for k in range(len(inputs))]
    for member in team:
        member.start()
    for member in team:
        member.join()
    assert not wrong


def test_a_bound_run_reads_and_writes_the_callers_arrays() -> None:
    """New numbers in a bound array would not be seen, or the answer would go elsewhere."""
    graph = GRAPHS["chain"]
    engine = NativeEngine(graph)
    x, other = random_inputs(graph, 1, 1), random_inputs(graph, 1, 2)
    outputs = [np.zeros_like(y) for y in engine.run(x).values()]
    bound = engine.bind(list(x.values()), outputs)
    for inputs in (x, other):
        for target, source in zip(x.values(), inputs.values(), strict=True):
            target[...] = source
        bound()
        for y, expected in zip(outputs, Interpreter(graph).run(x).values(), strict=True):
            np.testing.assert_array_equal(y, expected)


def test_large_batches_run_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece would read the samples of another, or a batch that does not divide well would be cut off."""
    graph = GRAPHS["residual"]
    monkeypatch.setattr(engine_module, "CACHE_BYTES", 3 * NativeEngine(graph).arena_bytes(N=1))
    engine = NativeEngine(graph)
    assert engine.batch == 3
    for count in (3, 6, 7, 8):
        inputs = random_inputs(graph, count, count)
        made, expected = engine.run(inputs), Interpreter(graph).run(inputs)
        outputs = [np.zeros_like(y) for y in expected.values()]
        engine.bind(list(inputs.values()), outputs)()
        for y, bound, (name, wanted) in zip(made.values(), outputs, expected.items(), strict=True):
            np.testing.assert_array_equal(y, wanted, err_msg=name)
            np.testing.assert_array_equal(bound, wanted, err_msg=name)


def test_the_profile_names_the_users_layers() -> None:
    """Nobody would learn which layer takes the time."""
    graph = GRAPHS["residual"]
    steps = NativeEngine(graph).profile(random_inputs(graph, 1, 1), 3)
    assert {"stem", "a1", "a2", "projection", "head"} <= {s.origin for s in steps}
    assert all(s.ns >= 0 for s in steps)
    assert sum(s.macs for s in steps) > 0


def test_an_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """INTONLY_ISA would be ignored, or a wrong word silently replaced."""
    monkeypatch.setenv("INTONLY_ISA", "scalar")
    assert NativeEngine(GRAPHS["chain"]).isa == "scalar"
    monkeypatch.setenv("INTONLY_ISA", "mmx")
    with pytest.raises(BackendError, match=r"'mmx' cannot run here; this machine and build have .*scalar"):
        chosen_isa()
    monkeypatch.delenv("INTONLY_ISA")
    assert chosen_isa() == _native.best_isa()


def test_packed_weights_are_shared_between_batch_sizes() -> None:
    """Each new batch size would pack all weights again."""
    graph = GRAPHS["residual"]
    engine = NativeEngine(graph)
    engine.reserve(N=1)
    before = engine.resident_bytes
    engine.reserve(N=4)
    assert 0 < before == engine.resident_bytes


def test_a_sum_takes_the_place_of_its_shortcut() -> None:
    """A residual network would hold more images at a time than it needs."""
    graph = GRAPHS["residual"]
    made, _ = NativeEngine(graph).program({"N": 1})
    joins = [s for s in made.steps if s.kind == "gemm" and s.fields["r_ref"] != -1]
    assert joins
    assert any(s.fields["r_ref"].buffer == s.fields["y_ref"].buffer for s in joins)
