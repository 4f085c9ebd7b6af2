# SPDX-License-Identifier: Apache-2.0
"""Where a distillation begins: noise, and the scale that a network expects its input to have."""

from __future__ import annotations

import hashlib

import torch

from intonly.steps.distill.records import Source

PUBLISHED_DIVISOR = 5418.75
"""The published code divides integers from -127.5 to 126.5 by their variance, not their deviation; so they begin small."""


def generator_of(seed: int, batch: int, name: str) -> torch.Generator:
    """Return random numbers that depend on the seed, the batch's number and the input's name, and on nothing else."""
    digest = hashlib.sha256(f"{seed}/{batch}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise(kind: str, source: Source, count: int, random: torch.Generator) -> torch.Tensor:
    """Return `count` samples of noise, float32, normalized units.

    "smooth": amplitudes fall as one over the spatial frequency, as in photographs, so neighbouring pixels agree;
    mean 0, deviation 1 a channel over the batch. Inputs that are no images get "normal" noise instead: there are no neighbours.
    "zeroq": the start of the published code. Source: Field 1987 for the spectrum; Cai et al. 2020 for the last.
    """
    shape = (count, *source.shape)
    if kind == "zeroq":
        return (torch.randint(0, 255, shape, generator=random) - 127.5) / PUBLISHED_DIVISOR
    x = torch.randn(shape, generator=random)
    if kind == "normal" or len(source.shape) != 3 or min(source.shape[1:]) < 2:
        return x
    h, w = source.shape[1:]
    frequency = (torch.fft.fftfreq(h)[:, None].square() + torch.fft.rfftfreq(w)[None].square()).sqrt()
    frequency[0, 0] = 1 / max(h, w)
    x = torch.fft.irfft2(torch.fft.rfft2(x) / frequency, s=(h, w))
    variance, mean = torch.var_mean(x, (0, 2, 3), keepdim=True, unbiased=False)
    return torch.as_tensor((x - mean) / (variance + 1e-12).sqrt())
