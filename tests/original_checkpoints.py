"""Checkpoints in the form of the authors', with random weights, and the forward pass of the method figure written out.

Nothing here imports the library: what it computes is held against this.
"""

import torch
from torch.nn import functional

SMALL = {"hidden_size": 384, "layers": 12, "heads": 6, "registers": 96, "patch": 16, "grid": (14, 14)}  # RATS-S/16
BASE = {"hidden_size": 768, "layers": 12, "heads": 12, "registers": 192, "patch": 16, "grid": (14, 14)}  # RATS-B/16
TINY = {"hidden_size": 32, "layers": 2, "heads": 4, "registers": 8, "patch": 8, "grid": (4, 4)}
HEAD = {"hidden": 2048, "bottleneck": 256, "prototypes": 65536}
TINY_HEAD = {"hidden": 24, "bottleneck": 8, "prototypes": 16}


def backbone(hidden_size, layers, heads, registers, patch, grid, qkv_bias=True, seed=0):
    """A state dict by DINO's names; registers as `register_tokens`, positions of patches alone."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, around=0.0):
        return around + 0.2 * torch.randn(*shape, generator=generator)

    tensors = {
        "register_tokens": random(1, registers, hidden_size),
        "pos_embed": random(1, grid[0] * grid[1], hidden_size),
        "patch_embed.proj.weight": random(hidden_size, 3, patch, patch) / patch,
        "patch_embed.proj.bias": random(hidden_size),
    }
    for index in range(layers):
        block = f"blocks.{index}"
        for norm in ("norm1", "norm2"):
            tensors |= {
                f"{block}.{norm}.weight": random(hidden_size, around=1.0),
                f"{block}.{norm}.bias": random(hidden_size),
            }
        sizes = {
            "attn.qkv": (3 * hidden_size, hidden_size),
            "attn.proj": (hidden_size, hidden_size),
            "mlp.fc1": (4 * hidden_size, hidden_size),
            "mlp.fc2": (hidden_size, 4 * hidden_size),
        }
        for name, (outputs, inputs) in sizes.items():
            tensors[f"{block}.{name}.weight"] = random(outputs, inputs) * (5 / inputs**0.5)
            if qkv_bias or name != "attn.qkv":
                tensors[f"{block}.{name}.bias"] = random(outputs)
    return tensors | {"norm.weight": random(hidden_size, around=1.0), "norm.bias": random(hidden_size)}


def head(hidden_size, hidden, bottleneck, prototypes, seed=1):
    """A state dict of DINO's head (vision_transformer.py, DINOHead)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for index, (inputs, outputs) in {0: (hidden_size, hidden), 2: (hidden, hidden), 4: (hidden, bottleneck)}.items():
        tensors[f"mlp.{index}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        tensors[f"mlp.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    tensors["last_layer.weight_g"] = torch.ones(prototypes, 1)
    tensors["last_layer.weight_v"] = torch.randn(prototypes, bottleneck, generator=generator)
    return tensors


def published(backbone_tensors, head_tensors=None, prefix="module.backbone.", head_prefix="module.head."):
    """What a published file holds."""
    tensors = {f"{prefix}{name}": tensor for name, tensor in backbone_tensors.items()}
    return {"teacher": tensors | {f"{head_prefix}{name}": tensor for name, tensor in (head_tensors or {}).items()}}


def forward(tensors, registers, images, heads):
    """Registers and patches after the final norm, (B, N, D) and (B, L, D), by the three steps of the method figure.

    The literal form: q, k and v of all tokens, and the registers' slots of foreign heads filled with zeros.

    Args:
        tensors: As `backbone` makes them, `register_tokens` left out of account.
        registers: Their positions added, head by head, (N, D).
        images: (B, 3, height, width) at the size of the learned positions.
        heads: H.
    """
    size = registers.shape[1]
    linear, norm = functional.linear, functional.layer_norm

    def weights(name):
        return tensors[f"{name}.weight"], tensors.get(f"{name}.bias")

    kernel, bias = weights("patch_embed.proj")
    patches = functional.conv2d(images, kernel, bias, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    tokens = torch.cat([registers.expand(len(images), -1, -1), patches + tensors["pos_embed"]], dim=1)
    number, channels = len(registers), size // heads
    share = number // heads
    for index in range(sum(name.endswith("norm1.weight") for name in tensors)):
        block = f"blocks.{index}"
        q, k, v = linear(norm(tokens, (size,), *weights(f"{block}.norm1"), eps=1e-6), *weights(f"{block}.attn.qkv")).chunk(
            3, -1
        )
        slots = torch.zeros_like(tokens)
        for head in range(heads):
            own = slice(head * channels, (head + 1) * channels)
            rows = slice(head * share, (head + 1) * share)
            queries, keys, values = q[:, :, own], k[:, number:, own], v[:, number:, own]
            read = (queries[:, rows] @ keys.transpose(1, 2) / channels**0.5).softmax(-1) @ values
            talked = (read @ read.transpose(1, 2) / channels**0.5).softmax(-1) @ read
            slots[:, rows, own] = talked
            slots[:, number:, own] = (queries[:, number:] @ talked.transpose(1, 2) / channels**0.5).softmax(-1) @ talked
        tokens = tokens + linear(slots, *weights(f"{block}.attn.proj"))
        hidden = functional.gelu(
            linear(norm(tokens, (size,), *weights(f"{block}.norm2"), eps=1e-6), *weights(f"{block}.mlp.fc1"))
        )
        tokens = tokens + linear(hidden, *weights(f"{block}.mlp.fc2"))
    tokens = norm(tokens, (size,), *weights("norm"), eps=1e-6)
    return tokens[:, :number], tokens[:, number:]


def head_forward(tensors, pooled):
    """Logits over the prototypes, (B, D) -> (B, K), as DINOHead computes them."""
    for index in (0, 2, 4):
        pooled = functional.linear(pooled, tensors[f"mlp.{index}.weight"], tensors[f"mlp.{index}.bias"])
        pooled = functional.gelu(pooled) if index < 4 else functional.normalize(pooled, dim=-1)
    directions = tensors["last_layer.weight_v"]
    directions = directions / directions.norm(dim=1, keepdim=True)
    return pooled @ (tensors["last_layer.weight_g"] * directions).T
