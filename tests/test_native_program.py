# SPDX-License-Identifier: Apache-2.0
"""Programs from Python: what the binding refuses and says, and the same bytes however a program is run."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from intonly.core.errors import BackendError

native = pytest.importorskip("intonly._native", reason="the native module is not built; run `make venv`")

SPACE = 1 << 48
CONSTANTS, ARENA, FIRST = 0, SPACE, 2 * SPACE
S8, U8, S16, S32 = 0, 1, 2, 4
ABSENT = -1
REFERENCES = (
    *("a_ref", "b_ref", "c_ref", "r_ref", "bias", "packed"),
    *("multiplier", "shift", "residual_multiplier", "residual_shift", "x_zero"),
)
COUNT = 5000


def step(kind: str, **fields: Any) -> list[int]:
    """Return the words of a step; fields that are not given are 0, references absent."""
    number, names = native.STEPS[kind]
    assert set(fields) <= {name for name, _ in names}
    words: list[int] = []
    for name, count in names:
        value = fields.get(name, ABSENT if name in REFERENCES else 1 if name == "parts" else 0)
        words += list(value) if count > 1 and not isinstance(value, int) else [value] * count
    words[0], words[1] = number, len(words)
    return words


def vector(stride: int) -> list[int]:
    """Return strides of a vector along the last axis."""
    return [0] * 7 + [stride]


def add(a: int, b: int, y: int, count: int = COUNT, parts: int = 16, beside: int = 0) -> list[int]:
    """Return the words of y = a + b for int32 vectors."""
    fields = {f"{name}_ref": ref for name, ref in zip("aby", (a, b, y), strict=True)}
    fields |= {f"{name}_type": S32 for name in "aby"} | {f"{name}_strides": vector(4) for name in "aby"}
    return step("map", parts=parts, beside=beside, op=1, sign=1, extent=[1] * 7 + [count], **fields)


def doubled(*, isa: str = "scalar", count: int = COUNT, steps: int = 3) -> Any:
    """Return the program y = x * 2^steps, through the arena."""
    words = add(FIRST, FIRST, ARENA if steps > 1 else FIRST + SPACE, count)
    for k in range(1, steps):
        source, target = ARENA + 4 * count * ((k - 1) % 2), ARENA + 4 * count * (k % 2)
        words += add(source, source, FIRST + SPACE if k == steps - 1 else target, count)
    slots = ([("x", "int32", (count,))], [("y", "int32", (count,))])
    return native.Program(np.array(words, np.int64), native.aligned_bytes(64), 8 * count, *slots, isa)


@pytest.fixture(name="x")
def _x() -> np.ndarray:
    return np.random.default_rng(5).integers(-1000, 1000, COUNT).astype(np.int32)


def test_steps_are_those_of_the_header():
    """A planner would put numbers into the wrong fields."""
    assert list(native.STEPS) == ["gemm", "window", "contract", "map", "copy", "gather", "halo", "attention", "norm"]
    assert [number for number, _ in native.STEPS.values()] == list(range(9))
    for _, fields in native.STEPS.values():
        assert [name for name, _ in fields[:4]] == ["kind", "words", "parts", "beside"]
        assert len({name for name, _ in fields}) == len(fields)
    assert dict(native.STEPS["copy"][1])["extent"] == 8
    assert dict(native.STEPS["contract"][1])["reduced"] == 4


def test_instruction_sets():
    """A caller could not choose kernels, or would be offered some that cannot run."""
    assert native.isas()[0] == "scalar"
    assert native.best_isa() == native.isas()[-1]
    assert all(native.isa_facts(isa)["wants_signed"] in (-1, 0, 1) for isa in native.isas())
    assert native.isa_facts("scalar") == {"wants_signed": -1}
    with pytest.raises(BackendError, match=r"isa must be one that .*scalar.*, got 'mmx'"):
        native.isa_facts("mmx")


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_same_bytes_for_any_number_of_threads(x, isa, threads, steps):
    """A result would depend on how the work is divided."""
    program = doubled(isa=isa, steps=steps)
    (y,) = program.run([x], threads=threads)
    assert (y.dtype, y.shape) == (np.int32, (COUNT,))
    np.testing.assert_array_equal(x << steps, y)


def test_outputs_may_be_given(x):
    """A caller's array would not be written, or another one returned."""
    y = np.zeros(COUNT, np.int32)
    results = doubled().run((x,), (y,), threads=2)
    assert results[0] is y
    np.testing.assert_array_equal(8 * x, y)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bound_run(x, threads):
    """A bound call would not see what its input holds now."""
    bound = doubled().bind([x], threads=threads)
    (y,) = bound.outputs
    for change in range(20):
        x += change
        bound()
        np.testing.assert_array_equal(8 * x, y)


def test_bound_run_keeps_what_it_needs():
    """Arrays, constants or the program would be freed while a bound call may still use them."""
    x = np.arange(COUNT, dtype=np.int32)
    program = doubled()
    bound = program.bind([x], [np.zeros(COUNT, np.int32)])
    alive = weakref.ref(x)
    del x, program
    gc.collect()
    bound()
    assert alive() is not None
    np.testing.assert_array_equal(8 * np.arange(COUNT), bound.outputs[0])
    del bound
    gc.collect()
    assert alive() is None


def together(work: Callable[[int], None], count: int) -> None:
    """Run `work` in several Python threads; an error in one of them is raised here."""
    errors: list[BaseException] = []

    def guarded(index: int) -> None:
        try:
            work(index)
        except BaseException as error:  # noqa: BLE001 -- raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_several_threads_run_one_program(x):
    """Runs at the same time would share an arena."""
    program = doubled(steps=5)
    program.reserve(contexts=2, threads=1)

    def work(index: int) -> None:
        own = x + index
        for k in range(40):
            np.testing.assert_array_equal(own << 5, program.run([own], threads=1 + (index + k) % 3)[0])

    together(work, 4)


def test_several_threads_call_one_bound_run(x):
    """Calls at the same time would disturb each other."""
    bound = doubled().bind([x], threads=2)
    together(lambda _: [bound() for _ in range(50)] and None, 3)
    np.testing.assert_array_equal(8 * x, bound.outputs[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own(x):
    """A child process would wait for threads that only its parent has."""
    program = doubled()
    bound = program.bind([x], threads=2)
    program.run([x], threads=2)
    child = os.fork()
    if child == 0:
        bound()
        good = np.array_equal(8 * x, bound.outputs[0]) and np.array_equal(8 * x, program.run([x], threads=2)[0])
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    bound()


def test_pieces(x):
    """A long array would not be worked on piece by piece."""
    program = doubled(count=100)
    np.testing.assert_array_equal(8 * x, program.run([x], threads=2, pieces=COUNT // 100)[0])
    with pytest.raises(BackendError, match=r"input 'x' must have shape \(700,\), got \(5000,\)"):
        program.run([x], pieces=7)


def test_profile(x):
    """A step's time would be missing or another step's."""
    program = doubled(steps=4)
    for threads in (1, 2):
        times = program.profile([x], repeats=5, threads=threads)
        assert (times.dtype, times.shape) == (np.int64, (4,))
        assert (times > 0).all() and times.max() < 10**9
    with pytest.raises(BackendError, match="repeats must be 1 or more"):
        program.profile([x], repeats=0)


def test_properties(x):
    """What a program says about itself would be wrong."""
    program = doubled(steps=4)
    assert (program.arena_bytes, program.steps, program.isa) == (8 * COUNT, 4, "scalar")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda x: ([x, x],), "inputs must be 1 arrays, got 2"),
        (lambda x: ([x[:-1]],), r"input 'x' must have shape \(5000,\), got \(4999,\)"),
        (lambda x: ([x.astype(np.int64)],), "input 'x' must be int32, got int64"),
        (lambda x: ([x.astype(np.float32)],), "input 'x' must be int32, got float32"),
        (lambda x: ([np.repeat(x, 2)[::2]],), "input 'x' must be contiguous"),
        (lambda x: ([x.tolist()],), "input 'x' must be a NumPy array, got list"),
        (lambda x: ([np.frombuffer(b"\0" * (4 * COUNT + 1), np.uint8)[1:].view(np.int32)],), "input 'x' is not aligned"),
        (lambda x: ([x], []), "outputs must be 1 arrays, got 0"),
        (lambda x: ([x], [np.zeros(3, np.int32)]), r"output 'y' must have shape \(5000,\), got \(3,\)"),
        (lambda x: ([x], [np.broadcast_to(np.int32(0), (COUNT,))]), "output 'y' (is read-only|must be contiguous)"),
        (lambda x: ([x], [np.frombuffer(bytes(4 * COUNT), np.int32)]), "output 'y' is read-only"),
        (lambda x: ([x], [x]), "output 'y' shares memory with input 'x'"),
        (lambda x: ([x], None, 0), "threads must be 1 to 64, got 0"),
        (lambda x: ([x], None, 65), "threads must be 1 to 64, got 65"),
        (lambda x: ([x], None, 1, 0), "pieces must be 1 or more, got 0"),
    ],
)
@pytest.mark.parametrize("call", ["run", "bind"])
def test_arrays_that_do_not_fit(x, call, arguments, message):
    """A kernel would read or write memory of another size or type."""
    with pytest.raises(BackendError, match=message) as caught:
        getattr(doubled(), call)(*arguments(x))
    assert caught.value.backend == "native"


def make(steps: list[int], **changes: Any) -> Any:
    """Return a program of two vectors with some arguments changed."""
    arguments = {
        "words": np.array(steps, np.int64),
        "constants": native.aligned_bytes(64),
        "arena_bytes": 4 * COUNT,
        "inputs": [("x", "int32", (COUNT,))],
        "outputs": [("y", "int32", (COUNT,))],
        "isa": "scalar",
    }
    return native.Program(**{**arguments, **changes})


GOOD = add(FIRST, FIRST, FIRST + SPACE)


def columns(side: int, *, y_row: int = 16, parts: int = 16, beside: int = 1) -> list[int]:
    """Return the words of y[:, 2 * side :][:, :2] = x for int32 rows of two, in the arena, whose rows are `y_row` bytes long."""
    fields = {"a_ref": FIRST, "a_type": S32, "y_ref": ARENA + 8 * side, "y_type": S32}
    strides = {"a_strides": [0] * 6 + [8, 4], "y_strides": [0] * 6 + [y_row, 4]}
    return step("copy", parts=parts, beside=beside, extent=[1] * 6 + [100, 2], **fields, **strides)


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (GOOD[:-1], {}, r"step 0 \(map\): a step has another length"),
        ([99, *GOOD[1:]], {}, "step 0: there is no such kind of step"),
        (GOOD + add(FIRST, FIRST, ARENA, parts=0), {}, r"step 1 \(map\): parts must be 1..4096"),
        (GOOD + add(FIRST, FIRST, ARENA, beside=2), {}, r"step 1 \(map\): beside must be 0 or 1"),
        (add(FIRST, FIRST, FIRST + SPACE, COUNT + 1), {}, r"step 0 \(map\): a lies outside its space"),
        (add(FIRST, FIRST, ARENA), {"arena_bytes": 4 * COUNT - 1}, "y lies outside what may be written"),
        (add(FIRST, FIRST, FIRST), {}, "y lies outside what may be written"),
        (add(FIRST, FIRST, CONSTANTS, 4), {}, "y lies outside what may be written"),
        (add(FIRST, FIRST + 2, ARENA, 10), {}, "b lies outside its space"),
        (GOOD, {"constants": np.zeros(64, np.uint8)}, "constants must be made by aligned_bytes"),
        (GOOD, {"constants": native.aligned_bytes(128)[8:]}, "constants must be made by aligned_bytes"),
        (GOOD, {"constants": native.aligned_bytes(64).view(np.int8)}, "constants must be a uint8 array"),
        (GOOD, {"words": np.array(GOOD, np.int64).view(np.uint64)}, "words must be int64, got uint64"),
        (GOOD, {"words": np.array([GOOD], np.int64)}, "words must have one axis"),
        (GOOD, {"inputs": [("x", "float32", (COUNT,))]}, "input 'x': the type must be int8, .* got 'float32'"),
        (GOOD, {"inputs": [("x", "int32", (COUNT, 0))]}, "input 'x': every extent must be 1 or more"),
        (GOOD, {"isa": "mmx"}, "isa must be one that this machine"),
    ],
)
def test_programs_that_do_not_fit(words, changes, message):
    """A damaged or forged program would run."""
    with pytest.raises(BackendError, match=message):
        make(words, **changes)


BESIDE = r"step 1 \((map|copy)\): beside steps of which it touches bytes, or too many: beside must be 0"


@pytest.mark.parametrize(
    "words",
    [
        add(FIRST, FIRST, ARENA) + add(ARENA, ARENA, FIRST + SPACE, beside=1),
        add(ARENA, ARENA, FIRST + SPACE) + add(FIRST, FIRST, ARENA, beside=1),
        add(FIRST, FIRST, ARENA) + add(FIRST, FIRST, ARENA + 4 * COUNT - 4, 1, parts=1, beside=1),
        add(FIRST, FIRST, ARENA, parts=1) + add(ARENA + 4, ARENA, FIRST + SPACE, 1, beside=1),
        columns(0) + columns(0),
        columns(0) + columns(1, y_row=12),
        columns(0, y_row=12) + columns(1),
    ],
)
def test_steps_that_touch_the_same_bytes_are_not_run_beside_each_other(words):
    """A forged program would give bytes that depend on which thread is first."""
    with pytest.raises(BackendError, match=BESIDE):
        make(words)


@pytest.mark.parametrize(
    ("words", "waits"),
    [
        (add(FIRST, FIRST, ARENA, parts=1) + add(ARENA, ARENA, FIRST + SPACE, parts=1, beside=1), 0),
        (add(FIRST, FIRST, ARENA, 9) + add(FIRST, FIRST, ARENA + 36, 9, beside=1) + add(ARENA, ARENA, FIRST + SPACE, 18), 1),
        (columns(0) + columns(1) + add(ARENA, ARENA, FIRST + SPACE, 400), 1),
        (columns(0, beside=0) + columns(1, beside=0) + add(ARENA, ARENA, FIRST + SPACE, 400), 1),
        (add(FIRST, FIRST, ARENA) + add(FIRST, FIRST, ARENA), 1),
        (add(FIRST, FIRST, ARENA, parts=1) + 60 * add(ARENA, ARENA, ARENA, parts=1, beside=1), 0),
        (add(FIRST, FIRST, ARENA, 9) + 60 * add(FIRST, FIRST, ARENA + 36, 9), 59),
        (add(FIRST, FIRST, ARENA, 1) + [word for k in range(60) for word in add(FIRST, FIRST, ARENA + 4 * k, 1)], 2),
    ],
)
def test_steps_wait_only_for_what_they_need(words, waits):
    """Threads would meet after each step, which costs as much as a small step."""
    program = make(words)
    assert program.waits == waits
    x = np.arange(COUNT, dtype=np.int32)
    runs = [program.run([x], [np.zeros(COUNT, np.int32)], threads)[0] for threads in (1, 2, 3)]
    for y in runs[1:]:
        np.testing.assert_array_equal(runs[0], y)


def test_an_empty_program():
    """A graph whose outputs are all constants would fail for want of steps."""
    assert make([]).steps == 0
    assert make([]).profile([np.zeros(COUNT, np.int32)]).shape == (0,)


def test_constants_are_shared_and_fixed():
    """Constants would be copied for each program, or change after they have been checked."""
    table = native.aligned_bytes(64)
    table[:8] = np.array([7, -7], np.int32).view(np.uint8)
    words = add(FIRST, CONSTANTS, FIRST + SPACE, 2)
    programs = [make(words, constants=table) for _ in range(2)]
    assert not table.flags.writeable
    del table
    gc.collect()
    for program in programs:
        y = np.zeros(COUNT, np.int32)
        program.run([np.full(COUNT, 100, np.int32)], [y])
        assert y[:3].tolist() == [107, 93, 0]


@pytest.mark.parametrize("size", [0, 1, 64, 100, (1 << 21) + 5])
def test_aligned_bytes(size):
    """Kernels would read unaligned or foreign memory."""
    block = native.aligned_bytes(size)
    assert (block.dtype, block.shape) == (np.uint8, (size,))
    assert block.ctypes.data % 64 == 0
    assert not block.any()
