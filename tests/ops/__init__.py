# SPDX-License-Identifier: Apache-2.0
"""Tests of operators, one by one."""
