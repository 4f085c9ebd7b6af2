# SPDX-License-Identifier: Apache-2.0
"""First step: a model of another framework becomes a FLOAT graph. Import the front end you need; neither loads the other's library."""
