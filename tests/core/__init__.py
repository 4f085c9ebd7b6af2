# SPDX-License-Identifier: Apache-2.0
"""Tests of the arithmetic law, the number formats, the primitives, the graph and its proof."""
