# SPDX-License-Identifier: Apache-2.0
"""Tests of timing: arithmetic with a clock that only fake contenders move; no test depends on how fast anything is."""
