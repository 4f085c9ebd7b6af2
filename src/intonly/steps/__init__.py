# SPDX-License-Identifier: Apache-2.0
"""The verbs, in the order data travels. Siblings exchange records and never call each other."""
