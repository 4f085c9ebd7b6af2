# SPDX-License-Identifier: Apache-2.0
"""Tests of the `.intonly` file: round trips, damage, forgery, certificates and golden vectors."""
