# SPDX-License-Identifier: Apache-2.0
"""The nouns: the law, number formats, the graph, primitives, records. Imports NumPy only."""
