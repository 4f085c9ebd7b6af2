# SPDX-License-Identifier: Apache-2.0
"""The best widths for a budget.

result = intonly.search(model, "size=50%,latency=0.9", data=loader)
q = intonly.quantize(model, result.plan, data=loader)

One way through: how much each layer's widths hurt (`steps.sensitivity`), what they cost (`steps.allocate.costs`,
`intonly.latency`), one choice (`steps.allocate`), and then the truth: the plan's network is made, run and timed. Where a
sum of layer times was wrong about the whole, the table is corrected and the choice made again.
"""
