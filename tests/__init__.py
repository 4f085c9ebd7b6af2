# SPDX-License-Identifier: Apache-2.0
"""Tests; a mirror of src/intonly, beside the oracle and the generators that they share."""
