# SPDX-License-Identifier: Apache-2.0
"""The peers that we know, one file for each library. Importing this package imports none of them."""

from __future__ import annotations

from intonly.benchmarking.peers import executorch, inductor, litert, openvino, ort
from intonly.benchmarking.peers.base import Arrays, Loaded, Peer, PeerError, Source, loaded, prepared, why_not

__all__ = ["LIBRARIES", "PEERS", "Arrays", "Loaded", "Peer", "PeerError", "Source", "loaded", "prepared", "why_not"]

PEERS: tuple[Peer, ...] = (
    inductor.EAGER,
    ort.FLOAT,
    openvino.FLOAT,
    openvino.NNCF,
    openvino.QDQ,
    ort.INT8,
    inductor.INT8,
    executorch.INT8,
    litert.FILE,
    openvino.TFLITE,
)
"""In the order in which they take turns."""

LIBRARIES: tuple[str, ...] = tuple(dict.fromkeys(peer.library for peer in PEERS if peer.bits == "int8"))
"""What `--peers` may name."""
