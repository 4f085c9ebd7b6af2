# SPDX-License-Identifier: Apache-2.0
"""Windows of images: a batch joined with other axes, and constants with several rows a sample, at any batch size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import intonly
from intonly.core.errors import InvalidGraphError
from intonly.core.graph import Dim, Graph, Node, resolve_shape, shape_text, symbolic_sizes
from intonly.core.primitives.movement import reshaped
from intonly.data import Dataset
from intonly.ops.reshape import encoded, runs
from intonly.steps.capture.torch_export import capture_torch
from intonly.torch_exec import TorchRunner

N = Dim("N", 1, 64)


class Windows(nn.Module):
    """A block of shifted windows as Swin has it: partition, roll, attention with a position bias and a mask of windows, and back."""

    def __init__(self, width: int = 8, side: int = 8, window: int = 4, heads: int = 2, shift: int = 2) -> None:
        super().__init__()
        self.side, self.window, self.heads, self.shift = side, window, heads, shift
        self.qkv, self.proj, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        count, tokens = (side // window) ** 2, window * window
        self.bias = nn.Parameter(torch.randn(1, heads, tokens, tokens))
        self.register_buffer("mask", torch.where(torch.rand(count, tokens, tokens) < 0.3, -100.0, 0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it on (N, side, side, width)."""
        n, s, w = x.shape[0], self.side, self.window
        y = self.norm(x).roll((-self.shift, -self.shift), (1, 2))
        y = y.view(n, s // w, w, s // w, w, -1).transpose(2, 3).contiguous().view(-1, w * w, x.shape[-1])
        q, k, v = self.qkv(y).view(y.shape[0], w * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.mask[None, :, None].expand(n, -1, -1, -1, -1).reshape(-1, 1, w * w, w * w)
        y = nn.functional.scaled_dot_product_attention(q, k, v, self.bias + mask)
        y = self.proj(y.transpose(1, 2).reshape(y.shape[0], w * w, -1))
        y = y.view(n, s // w, s // w, w, w, -1).transpose(2, 3).reshape(n, s, s, -1)
        return x + y.roll((self.shift, self.shift), (1, 2))


class AddedWindows(nn.Module):
    """The mask of windows added to explicit scores, which an older release does by a view of the batch and the windows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.randn(4, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run it on (N, 4, 3, 5)."""
        y = x.reshape(-1, 3, 5)
        s = y @ y.transpose(1, 2)
        s = s.view(-1, 4, 3, 3) + self.mask.unsqueeze(0)
        return (s.view(-1, 3, 3).softmax(-1) @ y).view(-1, 4, 3, 5)


def run(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    """Return what a float graph makes of its only input."""
    with torch.no_grad():
        return TorchRunner(graph).run({graph.inputs[0]: x})[graph.outputs[0]]


@pytest.mark.parametrize(("net", "shape"), [(Windows(), (8, 8, 8)), (AddedWindows(), (4, 3, 5))], ids=["expanded", "viewed"])
def test_windows_at_any_batch(net, shape):
    """A network with windows that is frozen at one batch, or whose mask goes to the windows of another image."""
    torch.manual_seed(0)
    graph, _ = capture_torch(net.eval(), torch.randn(2, *shape))
    assert isinstance(graph.values[graph.inputs[0]].shape[0], Dim)
    for batch in (1, 3):
        x = torch.randn(batch, *shape)
        torch.testing.assert_close(run(graph, x), net(x), rtol=1e-4, atol=1e-5)


def test_windows_in_integers():
    """An artifact, a certificate or an engine that takes four windows a sample for four samples."""
    torch.manual_seed(1)
    source = intonly.load(Windows().eval(), example_inputs=(torch.zeros(2, 8, 8, 8),))
    x = np.random.default_rng(2).normal(size=(16, 8, 8, 8)).astype(np.float32)
    q = intonly.quantize(source, "w8a8", data=Dataset({source.specs[0].name: x}))
    intonly.verify(q).raise_if_failed()
    whole = q(x)
    assert np.unique(whole).size > 50
    np.testing.assert_array_equal(np.concatenate([q(x[:1]), q(x[1:6]), q(x[6:])]), whole)
    assert intonly.evaluate(q, Dataset({source.specs[0].name: x}), against=source).sqnr_db > 30


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ((N, 4, 3), (-1, 3), (-1, 3)),
        ((N, 4, 3), (N.scaled(4), 3), (-1, 3)),
        ((N.scaled(4), 3), (N, 4, 3), (-1, 4, 3)),
        ((N.scaled(4), 6), (N.scaled(2), 12), (-1, 12)),
        ((N.scaled(4), 6), (-1, 2, 3), (0, 2, 3)),
        ((N, 6), (2, 3, N), (2, 3, -1)),
        ((N, Dim("L"), 6), (N, 2, Dim("L"), -1), (0, 2, -1, 3)),
        ((N, 4), (3, -1), None),
        ((N, 4), (2, N.scaled(2)), None),
        ((3, N, 4), (3, N.scaled(4)), (3, -1)),
        ((3, N, 4), (-1,), None),
        ((N, Dim("L")), (-1,), None),
        ((N, 4), (N.scaled(2), 3), None),
    ],
)
def test_reshapes_that_join_the_batch(old, new, code):
    """A joined batch that is written wrongly, or a division that only some batches allow."""
    assert encoded(old, new) == code
    if code is not None:
        made = reshaped(old, code, Node("reshape", (), ("y",)))
        sizes = {"N": 5, "L": 7}
        assert np.prod(resolve_shape(made, sizes)) == np.prod(resolve_shape(old, sizes))
        assert sum(len(run[0]) for run in runs(old, made)) == sum(d != 1 for d in old)


def test_multiples_of_a_size():
    """A multiple whose limits, name or size is that of the batch."""
    d = N.scaled(4).scaled(2)
    assert (d.base, d.times, d.min, d.max, shape_text((d, 3))) == (N, 8, 8, 512, "(8*N, 3)")
    assert resolve_shape((d, N), {"N": 3}) == (24, 3)
    with pytest.raises(InvalidGraphError, match="two symbolic extents"):
        reshaped((N, Dim("L")), (-1,), Node("reshape", (), ("y",)))


def test_sizes_of_a_graph():
    """A benchmark that takes a multiple of the batch for the batch."""
    graph, _ = capture_torch(AddedWindows().eval(), torch.randn(2, 4, 3, 5), batch_max=64)
    assert symbolic_sizes(graph) == {"N": N}
