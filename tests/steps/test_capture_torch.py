# SPDX-License-Identifier: Apache-2.0
"""Capture from PyTorch: the graph computes what the module computes, under the user's names, or refuses completely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from intonly.core.errors import DataError, UnsupportedOpError  # noqa: E402
from intonly.core.graph import Dim, Node  # noqa: E402
from intonly.core.primitives.movement import reshaped  # noqa: E402
from intonly.steps.capture.torch_export import capture_torch  # noqa: E402
from intonly.steps.capture.torch_symbols import reshape_convention  # noqa: E402
from tests.steps.modules import assert_same, net, run  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """3x3 convolutions with an option-A shortcut (He et al. 2015, section 4.2)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.grow = (cout - cin) // 2

    def forward(self, x: Any) -> Any:
        """Two convolutions and the shortcut."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grow:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow, self.grow))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """The CIFAR-10 network of `data/README.md`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Any) -> Any:
        """Logits, (N, 10)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def lively(module: nn.Module) -> nn.Module:
    """Give batch norms statistics that a wrong argument order would show."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2.0)
    return module


def test_small_net_keeps_its_meaning_names_and_a_free_batch() -> None:
    """A wrong operand order, a lost name or a batch that became fixed would show in the simplest network."""
    module = lively(Block(4, 4, 1))
    graph, pinned = capture_torch(module, torch.zeros(1, 4, 8, 8), name="block", batch_max=64)
    assert pinned == {}
    assert graph.name == "block"
    assert graph.values[graph.inputs[0]].shape == (Dim("N", 1, 64), 4, 8, 8)
    assert [n.origin for n in graph.nodes] == ["conv1", "bn1", "relu", "conv2", "bn2", "add", "relu.2"]
    assert {"conv1.weight", "bn1.running_mean", "bn2.bias"} <= set(graph.params)
    assert_same(graph, module, torch.randn(3, 4, 8, 8))


def test_capture_leaves_the_users_model_alone() -> None:
    """A capture that switches the user's model to eval, or touches its statistics, would ruin their training."""
    module = lively(Block(4, 4, 1)).half().train()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graph, _ = capture_torch(module, torch.randn(2, 4, 8, 8))
    assert module.training
    assert all(part.training for part in module.modules())
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    graph.params["conv1.weight"][:] = 7
    assert not (module.conv1.weight == 7).any()


def test_resnet20_with_option_a_shortcuts_agrees_with_its_module() -> None:
    """ResNet20's slices, zero channels, view and pooling would be lost or misread."""
    folder = SHARED / "data" / "resnet_cifar10"
    if not folder.exists():
        pytest.skip("the ResNet20 weights are not here (../shared/data/resnet_cifar10)")
    from safetensors.torch import load_file

    module = ResNet20()
    missing, unexpected = module.load_state_dict(load_file(folder / "resnet20.safetensors"), strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    graph, _ = capture_torch(module, torch.zeros(1, 3, 32, 32))
    origins = [n.origin for n in graph.nodes]
    assert {"conv1", "layer1.0.conv1", "layer2.0.pad", "layer3.2.add", "linear"} <= set(origins)
    assert isinstance(graph.values[graph.outputs[0]].shape[0], Dim)
    assert sum(n.op == "conv2d" for n in graph.nodes) == 19
    assert_same(graph, module, torch.randn(4, 3, 32, 32))


def transformer_nets() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Return model class, config class and a small configuration by name."""
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96]}
    return {
        "resnet50": ("ResNetForImageClassification", "ResNetConfig", {**sizes, "depths": [3, 4, 6, 3]}),
        "mobilenet_v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.35}),
        "regnet": ("RegNetForImageClassification", "RegNetConfig", {**sizes, "depths": [1, 2, 1, 1], "groups_width": 16}),
        "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1]}),
    }


@pytest.mark.parametrize("name", transformer_nets())
def test_transformers_networks_agree_and_keep_the_batch_free(name: str) -> None:
    """Networks as people load them (ModelOutput, in-place ReLU, same padding, gates) would be refused or wrong."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model, config, options = transformer_nets()[name]
    module = lively(getattr(transformers, model)(getattr(transformers, config)(num_labels=7, **options)))
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.2)
    graph, _ = capture_torch(module, (1, 3, 64, 64))
    assert graph.inputs == ("pixel_values",)
    assert isinstance(graph.values["pixel_values"].shape[0], Dim)
    known = {path for path, _ in module.named_modules()}
    assert all(n.origin in known or n.origin.rpartition(".")[0] in known or n.origin.rsplit(".", 2)[0] in known for n in graph.nodes)
    assert_same(graph, module, torch.randn(3, 3, 64, 64))


# -- refusals -------------------------------------------------------------------------------------------------------


def test_every_unsupported_operator_is_listed_at_once_under_its_layer() -> None:
    """A user who has to run capture once per missing operator would give up."""
    tail = nn.Sequential(nn.Linear(4, 4), net(lambda s, x: torch.lgamma(x)))
    module = net(lambda s, x: torch.digamma(s.tail(x)) + s.tail[0](x), tail=tail)
    with pytest.raises(UnsupportedOpError) as caught:
        capture_torch(module, (1, 4))
    assert [(origin, operator) for origin, operator, _ in caught.value.operators] == [("tail.1", "lgamma"), ("digamma", "digamma")]
    assert all(hint for _, _, hint in caught.value.operators)


def test_arithmetic_on_integers_is_refused_by_name_together_with_the_rest() -> None:
    """Sums of token ids would be taken for reals."""
    module = net(lambda s, x: torch.lgamma((x + x).to(torch.float32)))
    with pytest.raises(UnsupportedOpError) as caught:
        capture_torch(module, torch.tensor([[1, 2]]))
    assert [op for _, op, _ in caught.value.operators] == ["add", "lgamma"]
    assert "int64" in str(caught.value)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda s, x: F.dropout(x, 0.5, training=True), "random"),
        (lambda s, x: x + torch.randn(3), "random"),
        (lambda s, x: x + s.count.add_(1), "buffer"),
        (lambda s, x: torch.cond(x.sum() > 0, lambda v: v + 1, lambda v: v - 1, (x,)), "control flow"),
    ],
)
def test_random_numbers_state_and_branches_are_refused_with_advice(function: Any, word: str) -> None:
    """A network that is not a pure function would be frozen silently at what it did while tracing."""
    with pytest.raises(UnsupportedOpError, match=word):
        capture_torch(net(function, count=torch.zeros(3)), (2, 3))


def test_control_flow_on_data_is_refused_as_untraceable() -> None:
    """torch.export's many error types would reach the user as tracebacks."""
    with pytest.raises(UnsupportedOpError, match=r"torch\.export"):
        capture_torch(net(lambda s, x: x if x.sum() > 0 else -x), (2, 3))


def test_missing_and_unfit_examples_are_explained() -> None:
    """Without an example, or with one of the wrong shape, the user would see an error from inside torch."""
    with pytest.raises(DataError, match="--input-shape"):
        capture_torch(nn.Linear(3, 4))
    with pytest.raises(DataError, match=r"\(2, 5\)"):
        capture_torch(nn.Linear(3, 4), np.zeros((2, 5), np.float32))
    with pytest.raises(DataError, match="got int"):
        capture_torch(3, (1, 3))  # type: ignore[arg-type]


# -- names, constants, memory ---------------------------------------------------------------------------------------


def test_a_module_called_twice_gives_unique_origins() -> None:
    """Two layers under one name would get one another's plan."""
    module = net(lambda s, x: s.act(s.fc(s.act(s.fc(x)) + x)), fc=nn.Linear(4, 4), act=nn.ReLU(inplace=True))
    graph, _ = capture_torch(module, (1, 4))
    assert [n.origin for n in graph.nodes] == ["fc", "act", "add", "fc.2", "act.2"]
    assert set(graph.params) == {"fc.weight", "fc.bias"}
    assert_same(graph, module, torch.randn(3, 4))


def test_arithmetic_on_constants_is_folded() -> None:
    """Nodes without a computed operand would reach quantization, which has no range for them."""

    def forward(self: Any, x: Any) -> Any:
        mask = torch.zeros(4, 4)
        mask[:2] = 1
        row = mask[0]
        y = x + mask
        mask[1:].add_(torch.arange(4))
        return (y * row + mask) / self.std.sqrt()

    module = net(forward, std=torch.rand(4) + 1)
    graph, _ = capture_torch(module, (1, 4, 4))
    assert {n.op for n in graph.nodes} == {"add", "mul"}
    assert all(set(n.inputs) - set(graph.params) for n in graph.nodes)
    assert_same(graph, module, torch.randn(2, 4, 4))


def test_writes_in_place_are_followed() -> None:
    """Readers after an in-place operator would get the value from before it."""

    def forward(self: Any, x: Any) -> Any:
        y = x.clone()
        y += 1
        z = y.relu_()
        x.mul_(3)
        return z * x, y + 0.5

    graph, _ = capture_torch(net(forward), (1, 4))
    assert_same(graph, net(forward), torch.randn(3, 4))


def test_a_write_through_a_view_that_is_read_later_is_refused() -> None:
    """A graph has no memory: the write to y[:, :1] would be lost."""

    def forward(self: Any, x: Any) -> Any:
        y = x * 2
        y[:, :1].mul_(3)
        return y + 1

    with pytest.raises(UnsupportedOpError, match="in place"):
        capture_torch(net(forward), (1, 4))


def test_no_ops_leave_no_node() -> None:
    """Dropout, casts, copies, whole slices and no_grad blocks would clutter the graph and its plan."""

    def forward(self: Any, x: Any) -> Any:
        y = self.drop(x[:, :]).clone().contiguous().to(torch.float32).detach().view(x.shape)
        with torch.no_grad():
            return F.relu(F.pad(y, (0, 0)))

    module = net(forward, drop=nn.Dropout())
    graph, _ = capture_torch(module, (1, 4))
    assert [(n.op, n.inputs) for n in graph.nodes] == [("clip", ("x",))]
    assert_same(graph, module, torch.randn(3, 4))


def test_several_inputs_outputs_and_parts() -> None:
    """Outputs of dicts, parts of split, and keyword inputs would be swapped or lost."""

    class Net(nn.Module):
        def forward(self, left: Any, *, right: Any) -> Any:
            a, b, c = left.split([1, 2, 1], 1)
            d, e = b.chunk(2, 1)
            return {"first": torch.cat([e, d, a], 1), "rest": (c + right, None)}

    graph, _ = capture_torch(Net(), {"left": np.zeros((1, 4, 3)), "right": torch.zeros(1, 1, 3)})
    assert graph.inputs == ("left", "right")
    left, right = torch.randn(2, 4, 3), torch.randn(2, 1, 3)
    first, rest = run(graph, left, right)
    assert torch.equal(first, left[:, [2, 1, 0]])
    assert torch.allclose(rest, left[:, 3:] + right)


# -- sizes ----------------------------------------------------------------------------------------------------------


def test_sizes_computed_from_the_batch_become_kept_axes() -> None:
    """view(x.size(0), -1) would freeze the batch of the example into the graph."""
    module = net(lambda s, x: x.view(x.size(0), 2, -1).transpose(1, 2).reshape(x.shape[0], x.shape[1] * x.shape[2]))
    graph, _ = capture_torch(module, (1, 4, 6))
    assert [n.attrs["shape"] for n in graph.nodes if n.op == "reshape"] == [(0, 2, 12), (0, 24)]
    assert_same(graph, module, torch.randn(5, 4, 6))


def test_a_batch_that_cannot_be_free_stays_as_in_the_example() -> None:
    """Models that mix samples or fix their batch would be refused altogether."""
    mixing = net(lambda s, x: s.fc(x.transpose(0, 1).reshape(-1, 3)).view(4, x.shape[0], 5), fc=nn.Linear(3, 5))
    fixing = net(lambda s, x: x.relu() if x.shape[0] == 2 else -x)
    for module in (mixing, fixing):
        graph, _ = capture_torch(module, (2, 4, 3))
        assert graph.values["x"].shape == (2, 4, 3)
        assert_same(graph, module, torch.randn(2, 4, 3))


def test_a_batch_joined_with_other_axes_stays_free() -> None:
    """A layer over all positions of all samples as rows would freeze the batch."""
    module = net(lambda s, x: s.fc(x.reshape(-1, 3)).view(x.shape[0], 4, 5), fc=nn.Linear(3, 5))
    graph, _ = capture_torch(module, (2, 4, 3))
    assert_same(graph, module, torch.randn(5, 4, 3))


def test_a_constant_repeated_over_the_batch_needs_no_repeating() -> None:
    """Position tables expanded to the batch would be taken for computed values."""
    module = net(lambda s, x: x + s.table.expand(x.shape[0], -1, -1), table=torch.randn(1, 4, 3))
    graph, _ = capture_torch(module, (1, 4, 3))
    assert [(n.op, n.inputs) for n in graph.nodes] == [("add", ("x", "table"))]
    assert_same(graph, module, torch.randn(5, 4, 3))
    with_token = net(lambda s, x: torch.cat([s.token.expand(x.shape[0], -1, -1), x], 1), token=torch.randn(1, 1, 3))
    graph, _ = capture_torch(with_token, (1, 4, 3))
    assert_same(graph, with_token, torch.randn(1, 4, 3))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_reshape_convention_says_the_shape_it_was_given(data: st.DataObject) -> None:
    """A wrong 0 or -1 would reshape to something else at another batch size."""
    factors = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    batch = Dim("N")
    place = data.draw(st.integers(0, len(factors)))
    old = (*factors[:place], batch, *factors[place:])
    order = data.draw(st.permutations(factors))
    joined = (order[0] * order[1], *order[2:]) if len(order) > 1 and data.draw(st.booleans()) else tuple(order)
    place = data.draw(st.integers(0, len(joined)))
    new = (*joined[:place], batch, *joined[place:])
    attr = reshape_convention(old, new)
    assert attr is not None
    assert reshaped(old, attr, Node("reshape", (), ("y",))) == new


class FixedBatch(nn.Module):
    """Reads its batch as a number, so that torch cannot free it."""

    def forward(self, x: Any) -> Any:
        """Rows plus a constant that only fits two of them."""
        return x + torch.ones(2, 3)


def test_a_batch_that_stays_fixed_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    """A user who expects any batch would find out only when the network runs."""
    with caplog.at_level("WARNING", logger="intonly"):
        graph, _ = capture_torch(FixedBatch(), torch.zeros(2, 3), name="small")
    assert graph.values[graph.inputs[0]].shape == (2, 3)
    assert any("small" in r.message and "batch" in r.message for r in caplog.records if r.levelname == "WARNING")
