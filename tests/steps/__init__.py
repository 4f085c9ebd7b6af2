# SPDX-License-Identifier: Apache-2.0
"""Tests of the steps that a model goes through, in the order of `src/intonly/steps`."""
