# SPDX-License-Identifier: Apache-2.0
"""Reconstruction: learn how each block's weights are rounded, so that it computes what the float network computes.

Block by block in the order of the graph, from calibration samples without labels. A block's inputs are those that the
quantized network, reconstructed so far, really gives it; its target is the float network's value. So each block also makes
up for what was lost before it. Weights keep their grids; activations of few bits get new steps; biases move.

Source: Nagel et al. 2020 (AdaRound), whose problem this is; Li et al. 2021 (BRECQ), for blocks; Cheng et al. 2023 (SignRound),
for offsets that are rounded hard in every pass; Esser et al. 2020 (LSQ), for activation steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from intonly.core.graph import Graph, Node
from intonly.core.memory import affordable
from intonly.core.number_format import QParams
from intonly.core.spec import check
from intonly.core.store import Forgetful, Store
from intonly.ops import weight_of, weighted_nodes
from intonly.steps.reconstruct.blocks import Block, blocks_of
from intonly.steps.reconstruct.fingerprint import fingerprint
from intonly.steps.reconstruct.outcome import Outcome, applied, outcome_of_json
from intonly.steps.reconstruct.shared_grids import grids_of

if TYPE_CHECKING:
    from intonly.steps.reconstruct.learning import Share

__all__ = ["Block", "Outcome", "Reconstruction", "blocks_of", "reconstruct"]

MEMORY_BYTES = 4 << 30
"""Most activation memory that a reconstruction holds; it limits how many samples it uses."""
ELEMENT_BYTES = 16
"""Of one live element: 4 in either network, and a copy of both while a block that reads or makes it is learned."""


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """The reconstructed graph, and how it came about.

    Args:
        outcomes: one for each block, in order. left: why other layers with weights were left as they are, by origin.
    """

    graph: Graph
    outcomes: tuple[Outcome, ...]
    left: Mapping[str, str]


def reconstruct(
    graph: Graph,
    reference: Graph,
    batches: Sequence[Mapping[str, Any]],
    *,
    unit: str,
    steps: int,
    seed: int = 0,
    pinned: Mapping[str, QParams] | None = None,
    store: Store[Any] | None = None,
    share: Share,
    progress: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Return the QUANTIZED graph with weights, biases and activation steps learned from samples.

    Args:
        graph: QUANTIZED, as `correct` returns it: its codes and biases are where learning starts.
        reference: the canonical FLOAT graph: its values are the targets, its weights are rounded.
        batches: calibration inputs by name, in model units; as many samples as MEMORY_BYTES allow are used.
        unit: "block" or "layer", see `blocks_of`. steps: of learning, for each block.
        pinned: QParams that the source file fixes; what has them stays.
        store: where finished blocks are kept and looked for.
        share: this process's part of each minibatch; every process gets the same batches and returns the same graph.
        progress: called with the name of each finished block.

    Exactness: the same bytes for the same arguments, PyTorch version, machine and number of threads; with a store also when
        a run was stopped anywhere and started again.
    """
    import torch

    from intonly.steps.reconstruct.learning import learned
    from intonly.steps.reconstruct.live import Live, real_weights

    pinned, store = pinned or {}, store or Forgetful()
    left = {node.origin: why for node in weighted_nodes(graph) if (why := obstacle(graph, node, pinned))}
    batches = affordable(graph, batches, MEMORY_BYTES, ELEMENT_BYTES)
    grids, weights = grids_of(graph), real_weights(reference)
    name = fingerprint(
        graph, reference, batches, [unit, steps, seed, sorted(pinned), share.world, torch.__version__, torch.get_num_threads()]
    )
    live = Live(graph, reference, batches)
    outcomes: list[Outcome] = []
    at = 0
    for i, block in enumerate(blocks_of(graph, unit)):
        live.advance(graph, at, block.start)
        live.run_real(block.nodes(graph))
        held = store.get(f"{name}/{block.start}")
        if held is None:
            free = [node for node in block.nodes(graph) if weight_of(graph, node) and node.origin not in left]
            outcome = learned(graph, block, free, weights, grids, pinned, live, steps=steps, seed=seed + i, share=share)
            store.put(f"{name}/{block.start}", outcome.to_json())
        else:
            outcome = outcome_of_json(held)
        outcomes.append(outcome)
        graph = applied(graph, outcome, grids)
        live.run_rounded(graph, block.nodes(graph))
        live.forget(block.start, block.nodes(graph))
        at = block.stop
        if progress is not None:
            progress(block.name)
    graph = graph.pruned()
    check(graph)
    return Reconstruction(graph, tuple(outcomes), left)


def obstacle(graph: Graph, node: Node, pinned: Mapping[str, QParams]) -> str:
    """Return why the rounding of a layer cannot be learned, "" when it can."""
    name = weight_of(graph, node)
    qparams = graph.values[name].qparams
    if name in pinned or any(n in pinned for n in node.inputs[1:]):
        return "the source file fixes its codes"
    if qparams is None or qparams.format.levels is not None:
        return f"the format {qparams.format.name if qparams else 'real'} has no uniform grid"
    if qparams.zero_point.any() or qparams.axis not in (0, None):
        return "its weight has a zero point, or scales along another axis than its output channels"
    if len(graph.consumers()[name]) > 1:
        return "another layer reads the same codes"
    return ""
