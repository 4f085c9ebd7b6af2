# SPDX-License-Identifier: Apache-2.0
"""Modules that hold parameters under the dotted names of the user's own network."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn


class Branch(nn.Module):
    """A place in the tree of names: what the user's network calls `layer1.0.conv1.weight` is found under these names here."""

    def place(self, path: str, tensor: torch.Tensor | nn.Parameter) -> tuple[Branch, str]:
        """Store a parameter or buffer under a dotted name; return its holder and its name there."""
        holder = self
        *parents, leaf = path.split(".")
        for part in parents:
            name = holder.free_name(part, Branch)
            if name not in holder._modules:
                holder.add_module(name, Branch())
            holder = cast(Branch, holder._modules[name])
        leaf = holder.free_name(leaf, None)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor)
        return holder, leaf

    def free_name(self, name: str, kind: type[nn.Module] | None) -> str:
        """Return the name, with underscores behind it when a module cannot have a member of that name.

        Args:
            kind: what may have the name already; None = nothing.
        """
        name = name or "_"
        while not (kind is not None and isinstance(self._modules.get(name), kind)) and hasattr(self, name):
            name += "_"
        return name
