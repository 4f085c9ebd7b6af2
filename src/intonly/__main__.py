# SPDX-License-Identifier: Apache-2.0
"""`python -m intonly`, and `torchrun -m intonly` on many machines."""

from intonly.cli import main

main()
