# SPDX-License-Identifier: Apache-2.0
"""Suites over the registries: whatever is registered is tested."""
