# SPDX-License-Identifier: Apache-2.0
"""The best widths for a budget."""
