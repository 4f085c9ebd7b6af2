# SPDX-License-Identifier: Apache-2.0
"""The certificate: proof, for any input, that no accumulator overflows and that no float and no division is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from intonly.artifact import strict_json as js
from intonly.artifact.graph_writer import graph_digest
from intonly.core.arith import LAW_VERSION
from intonly.core.bounds import Failure, NodeBounds, bounds
from intonly.core.errors import ArtifactError, InvalidGraphError, VerificationError
from intonly.core.graph import Graph, Node

ACC_BITS = 32
"""Width of the accumulator of a sum of products."""
SUMS_OF_PRODUCTS = ("conv2d", "matmul")


@dataclass(frozen=True)
class LayerBound:
    """What one accumulator can reach.

    Args:
        origin: the layer in the user's model. op: the primitive.
        acc_min, acc_max: inclusive limits of the sum, over all inputs, elements and channels.
        headroom_bits: how often both limits could double and still fit the accumulator's type.
    """

    origin: str
    op: str
    acc_min: int
    acc_max: int
    headroom_bits: int


@dataclass(frozen=True)
class Certificate:
    """What `certify` proves about one graph, and can be asked to prove again.

    Args:
        graph_digest: SHA-256 of the graph it belongs to; "" when the graph is malformed.
        layers: one entry for each node that accumulates, in the order of the graph, bodies of composites included.
        float_values: values and attributes of the graph that are real numbers; a proof has 0.
        divisions: nodes that divide by data (`floor_div`). The law defines them; backends compute them without a division.
        failures: (origin, reason) for what could not be proved; a proof has none, and only proofs are stored.
    """

    law_version: int
    graph_digest: str
    layers: tuple[LayerBound, ...]
    float_values: int = 0
    divisions: int = 0
    failures: tuple[Failure, ...] = ()

    def raise_if_failed(self) -> None:
        """Raise VerificationError, naming each layer, when something could not be proved."""
        if self.failures:
            raise VerificationError(self.failures)

    def to_json(self) -> dict[str, Any]:
        """Return a proof as JSON data; each layer is [origin, op, acc_min, acc_max, headroom_bits].

        Raises:
            VerificationError: when it is no proof.
        """
        self.raise_if_failed()
        return {
            "law_version": self.law_version,
            "graph_digest": self.graph_digest,
            "float_values": self.float_values,
            "divisions": self.divisions,
            "layers": [list(dataclasses.astuple(layer)) for layer in self.layers],
        }

    @staticmethod
    def from_json(data: Any) -> Certificate:
        """Return the certificate that `to_json` wrote; whether it is true is for `verify_artifact` to say.

        Raises:
            ArtifactError: when the data do not follow the schema.
        """
        record = js.members(data, "certificate", ("law_version", "graph_digest", "float_values", "divisions", "layers"))
        count = (0, (1 << 31) - 1)
        layers = [_layer(entry) for entry in js.entries(record["layers"], "certificate: layers")]
        return Certificate(
            js.integer(record["law_version"], "certificate: law_version", *count),
            js.name(record["graph_digest"], "certificate: graph_digest"),
            tuple(layers),
            js.integer(record["float_values"], "certificate: float_values", *count),
            js.integer(record["divisions"], "certificate: divisions", *count),
        )

    def differences(self, proof: Certificate) -> list[Failure]:
        """Return (origin, reason) for each field in which this certificate differs from `proof`."""
        failures: list[Failure] = [
            ("", f"the certificate states {field} {getattr(self, field)}, the graph has {getattr(proof, field)}")
            for field in ("law_version", "float_values", "divisions")
            if getattr(self, field) != getattr(proof, field)
        ]
        failures.extend(
            (
                proved.origin,
                f"{proved.op}: the certificate states {field} {getattr(stated, field)!r}, the analysis gives {getattr(proved, field)!r}",
            )
            for stated, proved in zip(self.layers, proof.layers, strict=False)
            for field in ("origin", "op", "acc_min", "acc_max", "headroom_bits")
            if getattr(stated, field) != getattr(proved, field)
        )
        shorter = min(len(self.layers), len(proof.layers))
        failures.extend((layer.origin, f"{layer.op}: the certificate leaves this accumulator out") for layer in proof.layers[shorter:])
        failures.extend(
            (layer.origin, f"{layer.op}: the certificate lists an accumulator that the graph does not have")
            for layer in self.layers[shorter:]
        )
        if self.graph_digest != proof.graph_digest:
            failures.append(("", "the certificate belongs to another graph: its graph_digest is not that of the stored integers"))
        return failures


def certify(graph: Graph) -> Certificate:
    """Return the certificate of an integer graph; its `failures` name each layer for which there is no proof."""
    floats = _real_origins(graph)
    failures: list[Failure] = [(origin, reason) for origin, reason in floats]
    layers: Sequence[LayerBound] = ()
    digest = ""
    if not failures:
        try:
            proof = bounds(graph)
            failures.extend(proof.failures)
            layers = tuple(_layers(graph, proof.nodes))
            digest = graph_digest(graph)
        except InvalidGraphError as problem:
            failures.append((problem.origin, str(problem).removeprefix(f"{problem.origin} ")))
    divisions = sum(node.op == "floor_div" for node, _ in _nodes(graph))
    return Certificate(LAW_VERSION, digest, tuple(layers), len(floats), divisions, tuple(failures))


def _layer(data: Any) -> LayerBound:
    where = "certificate: layer"
    origin, op, acc_min, acc_max, headroom = js.entries(data, where, 5, 5)
    whole = (-(1 << 63), (1 << 63) - 1)
    return LayerBound(
        js.name(origin, where, empty=True),
        js.name(op, where),
        js.integer(acc_min, where, *whole),
        js.integer(acc_max, where, *whole),
        js.integer(headroom, where, -64, 64),
    )


def _layers(graph: Graph, entries: Sequence[NodeBounds]) -> Iterator[LayerBound]:
    """Yield the accumulators of a graph; where a composite stands, those of its body."""
    producers = graph.producers()
    for entry in entries:
        node = producers[entry.name]
        if node.body is not None:
            if entry.name == node.output:
                yield from _layers(node.body, entry.body)
        elif entry.acc is not None:
            fmt = graph.values[entry.name].format
            assert fmt is not None  # bounds checked the graph
            width = ACC_BITS if node.op in SUMS_OF_PRODUCTS else fmt.bits
            yield LayerBound(entry.origin, node.op, *entry.acc, width - entry.acc_bits)


def _nodes(graph: Graph) -> Iterator[tuple[Node, Graph]]:
    """Yield every node with the graph it stands in, bodies of composites included."""
    for node in graph.nodes:
        yield node, graph
        if node.body is not None:
            yield from _nodes(node.body)


def _real_origins(graph: Graph) -> list[Failure]:
    """Return (origin, reason) for everything in the graph that is a real number."""
    failures: list[Failure] = []
    graphs = [graph, *(node.body for node, _ in _nodes(graph) if node.body is not None)]
    for part in graphs:
        origins = {name: node.origin or node.output for node in reversed(part.nodes) for name in node.inputs}
        origins.update({name: node.origin or node.output for node in part.nodes for name in node.outputs})
        for name, value in part.values.items():
            array = part.params.get(name)
            if value.format is None or value.qparams is not None or (array is not None and array.dtype.kind not in "iu"):
                what = "parameter" if array is not None else "value"
                failures.append((origins.get(name, ""), f"{what} {name!r} is real; the integer stage knows integers only"))
    for node, _ in _nodes(graph):
        failures.extend(
            (node.origin or node.output, f"{node.op}: attribute {key!r} is real")
            for key, value in node.attrs.items()
            if any(isinstance(v, float) for v in (value if isinstance(value, tuple) else (value,)))
        )
    return failures


def checked_law(version: str) -> None:
    """Raise ArtifactError unless `version` is the arithmetic law that this code follows."""
    if version != str(LAW_VERSION):
        raise ArtifactError(
            f"follows version {version!r:.40} of the arithmetic law; this version of intonly follows {LAW_VERSION}. Make it again"
        )
