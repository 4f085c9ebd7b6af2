# SPDX-License-Identifier: Apache-2.0
"""What faithful implementations of published systems show."""
