# SPDX-License-Identifier: Apache-2.0
"""The destinations: each sees integer graphs and nothing of the steps."""
