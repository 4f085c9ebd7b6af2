# SPDX-License-Identifier: Apache-2.0
"""Tests of the C code that need no Python module: they compile it themselves."""
