# SPDX-License-Identifier: Apache-2.0
"""The prepared model: by the law in evaluation, differentiable in training, an ordinary module in everything else."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import intonly
from intonly.core.errors import DataError, InvalidGraphError
from intonly.model import to_model_units
from intonly.torch_exec import TorchRunner
from intonly.training.program import quantized_graph
from tests.small_nets import IMAGES, Normalized, SmallNet, images
from tests.steps.random_nets import random_network, random_sequence_network
from tests.steps.test_tokens import LONGEST, WORDS, Encoder
from tests.training.prepared import BY_TENSOR, RECIPES, W4A4, data_of, outputs, small, source_of, train

SEEDS = (0, 2, 5, 7)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("network", [random_network, random_sequence_network])
@pytest.mark.parametrize("seed", SEEDS)
def test_evaluation_is_by_the_law(network, seed, recipe):
    """The accuracy that training reports would not be that of the artifact."""
    graph = network(seed)
    m = intonly.prepare(source_of(graph), recipe, data_of(graph))
    train(m, data_of(graph, seed + 1))
    fresh = data_of(graph, seed + 100, 5)
    q = intonly.convert(m)
    intonly.verify(q).raise_if_failed()
    codes = q(fresh)
    m.eval()
    reals = q.dequantize(codes)
    for integers, law in zip(outputs(m.integers(fresh)), outputs(codes), strict=True):
        np.testing.assert_array_equal(integers, law)
    for made, law in zip(outputs(m(fresh)), outputs(reals), strict=True):
        np.testing.assert_array_equal(made, law.astype(np.float32))
    assert any(np.unique(y).size > 3 for y in outputs(codes)), "constant outputs prove nothing"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("seed", SEEDS)
def test_training_begins_where_quantize_ends(seed, recipe):
    """Calibration, compensated rounding and bias correction would be lost before the first step."""
    graph = random_network(seed)
    x = data_of(graph)
    m, q = intonly.prepare(source_of(graph), recipe, x), intonly.quantize(source_of(graph), recipe, x)
    begun = intonly.convert(m)
    assert begun.plan == q.plan
    for name, array in q.graph.params.items():
        if name.endswith(".weight"):
            np.testing.assert_array_equal(begun.graph.params[name], array, err_msg=name)
    for made, law in zip(outputs(begun(x)), outputs(q(x)), strict=True):
        assert (made == law).mean() > 0.95


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("network", [random_network, random_sequence_network])
@pytest.mark.parametrize("seed", SEEDS)
def test_training_rounds_where_the_quantized_graph_does(network, seed, recipe):
    """Training would see roundings that the integers do not have, or miss some that they have."""
    graph = network(seed)
    m = intonly.prepare(source_of(graph), recipe, data_of(graph))
    train(m, data_of(graph, seed + 1))
    fresh = data_of(graph, seed + 100, 5)
    runner = TorchRunner(quantized_graph(m.program, m.state()))
    with torch.no_grad():
        made, wanted = outputs(m(fresh)), [y.numpy() for y in runner.run(fresh).values()]
    for a, b in zip(made, wanted, strict=True):
        apart = np.abs(a - b) > 1e-4 * np.abs(b).max()
        assert apart.mean() < 0.2, "a tie in float32 may go another way and spread; more would be another placement"
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.05 * b.std()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
@pytest.mark.parametrize("mode", ["frozen", "batch"])
def test_every_parameter_has_a_gradient(recipe, mode):
    """Some weight, scale or step would never learn."""
    m = small(recipe, batch_norm=mode)
    x = torch.from_numpy(images(32, 1))
    (m(x) * torch.linspace(-1, 1, 160).reshape(32, 5)).sum().backward()
    for name, p in m.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0 or (mode == "batch" and name.endswith("conv1.bias")), name


def test_names_are_the_users():
    """A state dict could not be read, nor the float network be fed with what was trained."""
    m, net = small(), SmallNet()
    mine = {k.removeprefix("network.") for k in m.state_dict() if k.startswith("network.")}
    assert mine == {k for k in net.state_dict() if not k.endswith("num_batches_tracked")}
    for name, tensor in net.state_dict().items():
        if name.endswith(("weight", "running_var")):
            assert m.state_dict()[f"network.{name}"].shape == tensor.shape


@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_state_survives_a_file(form):
    """A checkpoint would lose a step, a statistic or the mode of the batch norms, or need pickled code."""
    m = small(batch_norm="batch")
    train(m, images(32, 1))
    if form == "torch":
        file = io.BytesIO()
        torch.save(m.state_dict(), file)
        file.seek(0)
        kept = torch.load(file, weights_only=True)
    else:
        kept = load(save(m.state_dict()))
    again = small()
    assert (intonly.convert(again)(images(8)) != intonly.convert(m)(images(8))).any()
    again.load_state_dict(kept)
    assert again.batch_norm == "batch"
    assert intonly.convert(again).artifact.to_bytes() == intonly.convert(m).artifact.to_bytes()


def test_copies_live_their_own_life():
    """Averaged weights (EMA), kept as a deep copy, would follow the model they were copied from."""
    m = small()
    m.eval()
    x = images(8, 3)
    before = outputs(m.integers(x))[0]
    other = copy.deepcopy(m)
    train(other, images(32, 1))
    np.testing.assert_array_equal(outputs(m.integers(x))[0], before)
    assert (outputs(other.integers(x))[0] != before).any()


@pytest.mark.parametrize("how", ["in place", "data", "data in place", "train", "statistics"])
def test_evaluation_sees_every_change(how):
    """A changed parameter would be evaluated as it was before."""
    m = small().eval()
    x = images(8, 3)
    before = outputs(m.integers(x))[0]
    layer = m.network.get_submodule("fc")
    if how == "in place":
        with torch.no_grad():
            layer.bias.add_(1)
    elif how == "data":
        layer.bias.data = layer.bias.data + 1
    elif how == "data in place":
        layer.bias.data.add_(1)
    elif how == "train":
        train(m, images(16))
    else:
        m.network.get_submodule("bn1").running_mean.add_(1)
    made = outputs(m.integers(x))[0]
    assert (made != before).any()
    np.testing.assert_array_equal(made, intonly.convert(m)(x))


def test_unchanged_state_is_lowered_once(monkeypatch):
    """Each evaluation batch would pay for a whole lowering."""
    m = small().eval()
    m(images(4))
    monkeypatch.setattr("intonly.training.module.integers_of", lambda *_: pytest.fail("lowered again"))
    m(images(4))
    m.train()
    m(images(4))
    m.eval()
    m(images(4))


def test_autocast_stays_outside():
    """Under mixed precision, codes would be rounded in 16 bits."""
    m, x = small(), images(16)
    wanted = m(x)
    with torch.autocast("cpu", torch.bfloat16):
        made = m(x)
        exact = m.eval()(x)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, wanted, rtol=0, atol=0)
    torch.testing.assert_close(exact, m(x), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_models_compute_the_same(backend):
    """torch.compile would change a code, keep an old state, or read integers as floats."""
    torch._dynamo.reset()
    m = small()
    compiled = torch.compile(m, backend=backend)
    x = torch.from_numpy(images(16))
    try:
        made = compiled(x)
    except Exception as problem:
        if "compiler" in str(problem).lower():
            pytest.skip(f"no C++ compiler for torch.compile: {problem!s:.80}")
        raise
    torch.testing.assert_close(made, m(x), rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(made.square().sum(), list(m.parameters()))
    plain = torch.autograd.grad(m(x).square().sum(), list(m.parameters()))
    for a, b in zip(grads, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    for _ in range(2):
        m.eval()
        torch.testing.assert_close(compiled(x), m(x), rtol=0, atol=0)
        train(m, x)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("form", ["array", "tensor", "mapping"])
def test_inputs_are_what_callers_hold(layout, form):
    """A training loop would have to convert what the artifact takes raw."""
    spec = intonly.InputSpec("x", layout, "uint8", IMAGES.mean, IMAGES.std)
    x = images(24) if layout == "NCHW" else images(24).transpose(0, 2, 3, 1)
    m = intonly.prepare(SmallNet().eval(), "w8a8", np.ascontiguousarray(x), inputs=spec)
    given = {"array": x, "tensor": torch.from_numpy(np.ascontiguousarray(x)), "mapping": {"x": x}}[form]
    torch.testing.assert_close(m(given), small("w8a8").train()(images(24)), rtol=0.2, atol=0.1)
    reals, law = m(given).detach(), m.eval()(given)
    assert (reals - law).abs().max() < 0.05 * law.abs().max()


@pytest.mark.parametrize("training", [True, False])
def test_inputs_that_do_not_fit_are_named(training):
    """Normalized floats handed to a network for raw bytes would train it on noise."""
    m = small().train(training)
    with pytest.raises(DataError, match="input 'x': expected uint8 numbers, got float32"):
        m(torch.zeros(2, 3, 8, 8))
    for shape in ((2, 3, 8), (2, 3, 9, 8), (2, 8, 8, 3)):
        with pytest.raises(DataError, match=r"input 'x': expected shape \(\w+, 3, 8, 8\), got"):
            m(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(DataError, match="1 inputs"):
        m()
    with pytest.raises(DataError, match=r"\[0\] samples"):
        m.integers(images(4)[:0])


def test_normalization_in_the_network_is_understood():
    """A network that normalizes its images itself would be trained on other values than it is run on."""
    spec = intonly.InputSpec("x", dtype="uint8")
    m = intonly.prepare(Normalized(SmallNet()).eval(), "w8a8", images(48), inputs=spec)
    x = images(16, 2)
    wanted = m.teacher(x)
    assert (m(x).detach() - wanted).norm() < 0.1 * wanted.norm()
    assert (m.eval()(x) - wanted).norm() < 0.1 * wanted.norm()


def test_the_users_model_stays_as_it_is():
    """Preparing or training would change the network it came from."""
    net = SmallNet().eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    train(intonly.prepare(net, W4A4, images(32), inputs=IMAGES), images(16))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("network.conv2.weight", "conv2: its weight or bias is not finite"),
        ("steps.weight.conv3.step", "conv3: its weight step became"),
        ("steps.activation.conv3.step", "its activation step became"),
    ],
)
def test_diverged_training_names_the_layer(place, said):
    """A NaN would become some code, and the artifact would look fine."""
    m = small()
    with torch.no_grad():
        m.get_parameter(place).fill_(float("nan"))
    with pytest.raises(InvalidGraphError, match=said):
        intonly.convert(m)
    with pytest.raises(InvalidGraphError, match=said):
        m.eval()(images(4))


def test_what_cannot_be_prepared_or_converted_is_named():
    """A wrong object would fail somewhere inside."""
    with pytest.raises(DataError, match=r"convert takes what intonly\.prepare returned, got Linear"):
        intonly.convert(torch.nn.Linear(2, 2))
    with pytest.raises(DataError, match="batch_norm must be 'frozen' or 'batch', got 'none'"):
        small(batch_norm="none")
    with pytest.raises(DataError, match="batch_norm must be 'frozen' or 'batch', got 'frosen'"):
        small().batch_norm = "frosen"
    with pytest.raises(DataError, match="ranges must be 'learned' or 'running', got 'minmax'"):
        small(ranges="minmax")
    with pytest.raises(DataError, match="prepare needs calibration data"):
        intonly.prepare(SmallNet(), "w8a8", None)
    with pytest.raises(DataError, match="quantized already"):
        intonly.prepare(intonly.quantize(SmallNet().eval(), "w8a8", images(8), inputs=IMAGES), "w8a8", images(8))


def test_weights_by_tensor_keep_one_step():
    """One scale for a whole tensor would become one for each channel."""
    m = small(BY_TENSOR)
    assert all(p.ndim == 0 for name, p in m.named_parameters() if name.startswith("steps.weight."))
    q = intonly.convert(m)
    assert {rule.weight_granularity for rule in q.plan.rules} == {"tensor"}


@pytest.mark.parametrize("bits", [4, 8])
def test_running_ranges_follow_the_batches(bits):
    """HAWQ-V3's ranges: a step would not settle where the limits of the batches are, or have a gradient it does not use."""
    m = small({"activation_bits": bits}, ranges="running")
    assert not any(name.startswith("steps.activation") for name, _ in m.named_parameters())
    assert {name for name in m.state_dict() if name.startswith("steps.")} == {
        n for n in small({"activation_bits": bits}).state_dict() if "steps." in n
    }
    x = torch.from_numpy(images(64, 1))
    with torch.no_grad():
        for _ in range(500):
            m(x)
    reals = to_model_units(x.numpy(), m.program.specs[0], m.program.canonical)
    top = float(TorchRunner(m.program.canonical).run({"x": torch.from_numpy(reals)}, until="conv3")["conv3"].max())
    step = float(m.get_buffer("steps.activation.conv3.step"))
    assert step == pytest.approx(top / m.program.grid_of["conv3"].limits.hi, rel=0.15)
    m(x).square().sum().backward()
    train(m, x)
    np.testing.assert_array_equal(m.eval().integers(x), intonly.convert(m)(x))


def test_a_text_network_trains_on_ids_and_masks() -> None:
    """Ids would be taken for reals, or what was trained would not be what the integers compute."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mask = (np.arange(8) < rng.integers(2, 9, (24, 1))).astype(np.int64)
    ids = rng.integers(0, WORDS, mask.shape) * mask
    m = intonly.prepare(Encoder().eval(), "w8a8", {"ids": ids, "mask": mask}, length_max=LONGEST)
    given = torch.from_numpy(ids), torch.from_numpy(mask)
    before = m.get_parameter("network.qkv.weight").detach().clone()
    m.train()
    optimizer = torch.optim.SGD(m.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        m(*given)[1].square().sum().backward()
        optimizer.step()
    assert not torch.equal(before, m.get_parameter("network.qkv.weight"))
    q = intonly.convert(m)
    m.eval()
    for law, codes in zip(m.integers(*given), q(ids, mask), strict=True):
        assert (law.numpy() == codes).all()
    assert q(ids[:, :5], mask[:, :5])[1].shape == (24, 16)
    with pytest.raises(DataError, match=r"'ids'.*0\.\.49"):
        m(given[0] + WORDS, given[1])
