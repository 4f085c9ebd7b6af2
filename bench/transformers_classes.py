# SPDX-License-Identifier: Apache-2.0
"""Capture, quantize and verify network classes of `transformers`, built from configs with random weights.

pip install transformers; python bench/transformers_classes.py [--size 96] [--length 64] [--samples 16] [--only Swin,BERT]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import intonly
from intonly.data import Dataset


def classes(size: int) -> dict[str, Any]:
    """Return what makes the networks, by name: default configurations (ResNet-50, MobileNetV2 1.0, RegNet-Y, ConvNeXt-T, Swin-T).

    ViT and DeiT are as wide as DeiT-tiny, BERT as MiniLM-L6; T5 is an encoder of 4 layers, Llama has 4 of 8
    heads that share 2 of keys and values.
    """
    import transformers as t

    tiny = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "image_size": size}
    mini = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "num_hidden_layers": 4}
    t5 = {"vocab_size": 8192, "d_model": 256, "d_kv": 32, "d_ff": 688, "num_layers": 4, "num_heads": 8, "feed_forward_proj": "gated-gelu"}
    llama = {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 688, "max_position_embeddings": 512, **heads}
    return {
        "ResNet-50": lambda: t.ResNetForImageClassification(t.ResNetConfig()),
        "MobileNetV2": lambda: t.MobileNetV2ForImageClassification(t.MobileNetV2Config()),
        "RegNet": lambda: t.RegNetForImageClassification(t.RegNetConfig()),
        "ConvNeXt": lambda: t.ConvNextForImageClassification(t.ConvNextConfig()),
        "ViT": lambda: t.ViTForImageClassification(t.ViTConfig(**tiny)),
        "DeiT": lambda: t.DeiTForImageClassification(t.DeiTConfig(**tiny)),
        "Swin": lambda: t.SwinForImageClassification(t.SwinConfig(image_size=size)),
        "BERT": lambda: t.BertModel(t.BertConfig(**mini)),
        "T5": lambda: t.T5EncoderModel(t.T5Config(**t5)),
        "Llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
    }


TEXT = {"BERT": 30522, "T5": 8192, "Llama": 8192}
"""Networks that read token ids and a mask, and how many words they know."""


def samples(name: str, count: int, size: int, length: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return inputs by name: images (count, 3, size, size), or ids and masks (count, length) of texts of different lengths."""
    if name not in TEXT:
        return {"pixel_values": rng.normal(size=(count, 3, size, size)).astype(np.float32)}
    mask = (np.arange(length) < rng.integers(length // 4, length + 1, (count, 1))).astype(np.int64)
    return {"input_ids": rng.integers(1, TEXT[name], mask.shape) * mask, "attention_mask": mask}


def settle(net: torch.nn.Module, x: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Give batch norms the statistics of some data, and linear layers and tokens of transformers the usual spread of trained ones.

    Random weights would explode in the one case, and hardly depend on the image in the other. T5 keeps its own queries, because
    no factor makes its scores smaller.
    """
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.endswith("SelfAttention.q"):
            torch.nn.init.xavier_uniform_(module.weight)
    for name, parameter in net.named_parameters():
        if (
            name.endswith(("_token", "position_embeddings", "relative_position_bias_table", "relative_attention_bias.weight"))
            or "embeddings.weight" in name
        ):
            torch.nn.init.normal_(parameter, 0.0, 0.5)
    for module in net.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.momentum = None
    net.train()
    with torch.no_grad():
        net(**x)
    return net.eval()


def main() -> None:
    """Run every class and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--only", default="", help="names of networks, with commas")
    options = parser.parse_args()
    torch.manual_seed(0)
    made = classes(options.size)
    names = options.only.split(",") if options.only else list(made)
    table = Table("network", "nodes", "integer nodes", "SQNR dB", "agree %", "bytes", "least headroom bits", "s")
    for name in names:
        start = time.perf_counter()
        data = samples(name, options.samples, options.size, options.length, np.random.default_rng(0))
        net = settle(made[name](), {key: torch.from_numpy(x) for key, x in data.items()})
        longest = 2 * options.length if name in TEXT else None
        source = intonly.load(net, example_inputs={key: x[:2] for key, x in data.items()}, length_max=longest)
        q = intonly.quantize(source, "w8a8", data=Dataset(data))
        result = intonly.verify(q)
        result.raise_if_failed()
        score = intonly.evaluate(q, Dataset({key: x[:8] for key, x in data.items()}), against=source)
        headroom = min(layer.headroom_bits for layer in q.artifact.certificate.layers)
        cells = (
            name,
            len(source.graph.nodes),
            len(q.graph.nodes),
            f"{score.sqnr_db:.1f}",
            f"{score.agreement:.0f}",
            q.size,
            headroom,
            f"{time.perf_counter() - start:.0f}",
        )
        table.add_row(*map(str, cells))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
