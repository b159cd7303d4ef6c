"""Checkpoints in the form of the authors', with random weights, and the forward pass of the method figure written out.

Nothing here imports the library: what it computes is held against this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

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


def by_our_names(tensors):
    """Tensors of `backbone` by the names of RatsModel."""
    modules = {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    modules |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    ours = {"layernorm.weight": tensors["norm.weight"], "layernorm.bias": tensors["norm.bias"]}
    for kind in ("weight", "bias"):
        ours[f"embeddings.patch_embeddings.{kind}"] = tensors[f"patch_embed.proj.{kind}"]
    ours |= {
        "embeddings.register_tokens": tensors["register_tokens"],
        "embeddings.position_embeddings": tensors["pos_embed"],
    }
    if "mask_token" in tensors:
        ours["embeddings.mask_token"] = tensors["mask_token"].reshape(1, 1, -1)
    for name, tensor in tensors.items():
        if not name.startswith("blocks."):
            continue
        _, index, *module, kind = name.split(".")
        block, module = f"encoder.layer.{index}", ".".join(module)
        if module in modules:
            ours[f"{block}.{modules[module]}.{kind}"] = tensor
        else:  # the fused one
            for projection, rows in zip("qkv", tensor.unflatten(0, (3, -1)), strict=True):
                ours[f"{block}.attention.{projection}_proj.{kind}"] = rows
    return ours


# A change of how a checkpoint is written: (written, meant, sizes), where `written` and `meant` are changed in place and both
# begin as `backbone` makes them. What they differ in afterwards is what a reader has to undo.
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors, Tensors, Mapping[str, Any]], None]


@dataclass
class Variant:
    """A way to write down a RATS.

    Attributes:
        changes: Of the tensors of `backbone`.
        wrap: Tensors of backbone and head -> what the file holds.
        options: That the reader needs, beside the number of heads.
        grid: Of the patches, if not that of the sizes.
        qkv_bias: Whether q, k and v have biases.
    """

    changes: Sequence[Change] = ()
    wrap: Callable[[Tensors, Tensors], dict[str, Any]] = published
    options: dict[str, Any] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    qkv_bias: bool = True

    def write(self, sizes, head_tensors=None, seed=0):
        """What a file holds, and by the names of `backbone` what that means."""
        if self.grid is not None:
            sizes = sizes | {"grid": self.grid}
        meant = backbone(**sizes, qkv_bias=self.qkv_bias, seed=seed)
        written = dict(meant)
        for change in self.changes:
            change(written, meant, sizes)
        return self.wrap(written, head_tensors or {}), meant


def _made(*shape):
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def registers_as(name, two_dimensional=False):
    def change(written, meant, sizes):
        registers = written.pop("register_tokens")
        written[name] = registers[0] if two_dimensional else registers

    return change


def in_turn(written, meant, sizes):
    """Register j of head h is written as the (j * H + h)-th, and so is its position."""
    number, heads = sizes["registers"], sizes["heads"]
    order = [head * (number // heads) + place for place in range(number // heads) for head in range(heads)]
    written["register_tokens"] = written["register_tokens"][:, order]
    if written["pos_embed"].shape != meant["pos_embed"].shape:
        written["pos_embed"] = torch.cat([written["pos_embed"][:, order], written["pos_embed"][:, number:]], dim=1)


def positions_in_front(class_token=False, registers=False):
    """Positions of a class token, which is not there, and of the registers, which are added to them."""

    def change(written, meant, sizes):
        number = sizes["registers"] if registers else 0
        front = _made(1, class_token + number, sizes["hidden_size"])
        written["pos_embed"] = torch.cat([front, written["pos_embed"]], dim=1)
        if registers:
            meant["register_tokens"] = meant["register_tokens"] + front[:, int(class_token) :]

    return change


def positions_of_registers_as(name):
    def change(written, meant, sizes):
        written[name] = _made(1, sizes["registers"], sizes["hidden_size"])
        meant["register_tokens"] = meant["register_tokens"] + written[name]

    return change


def class_token(written, meant, sizes):
    written["cls_token"] = _made(1, 1, sizes["hidden_size"])


def mask_token(written, meant, sizes):
    written["mask_token"] = meant["mask_token"] = _made(1, sizes["hidden_size"])


def layer_scales(written, meant, sizes):
    """As DINOv2 has them; they are multiplied into the projections before them."""
    for index in range(sizes["layers"]):
        for scale, projection in {"ls1": "attn.proj", "ls2": "mlp.fc2"}.items():
            gamma = written[f"blocks.{index}.{scale}.gamma"] = 1 + _made(sizes["hidden_size"])
            for kind in ("weight", "bias"):
                name = f"blocks.{index}.{projection}.{kind}"
                meant[name] = meant[name] * (gamma[:, None] if kind == "weight" else gamma)


def split_qkv(*parts):
    """The fused rows in pieces: "q", "k", "v", or "q", "kv"."""

    def change(written, meant, sizes):
        for name in [name for name in written if ".qkv." in name]:
            rows = written.pop(name)
            size = len(rows) // 3
            for part in parts:
                written[name.replace("qkv", part)], rows = rows[: size * len(part)], rows[size * len(part) :]

    return change


def names_of_transformers(written, meant, sizes):
    """Those of ViTModel in transformers 5."""
    split_qkv("q", "k", "v")(written, meant, sizes)
    renames = (
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
        ("pos_embed", "embeddings.position_embeddings"),
        ("register_tokens", "embeddings.register_tokens"),
        ("blocks.", "layers."),
        (".norm1.", ".layernorm_before."),
        (".norm2.", ".layernorm_after."),
        (".attn.proj.", ".attention.o_proj."),
        *((f".attn.{part}.", f".attention.{part}_proj.") for part in "qkv"),
    )
    for name in list(written):
        new = "layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name
        for before, after in renames:
            new = new.replace(before, after)
        written[new] = written.pop(name)


def behind(prefix, head_prefix):
    """Wraps under `teacher`, with these names before those of the backbone and of the head."""
    return lambda tensors, head_tensors: published(tensors, head_tensors, prefix, head_prefix)


def unwrapped(tensors, head_tensors):
    return published(tensors, head_tensors, "", "head.")["teacher"]


def _of_student(state):
    """Other weights of the same names, so that a reader who takes them is found out."""
    return {name: tensor + 1 for name, tensor in state.items()}


def with_student(tensors, head_tensors):
    """As a training of DINO saves it."""
    teacher = published(tensors, head_tensors)["teacher"]
    return {"student": _of_student(teacher), "teacher": teacher, "epoch": 388}


def flat_with_student(tensors, head_tensors):
    """Teacher and student in one state dict."""
    teacher = published(tensors, head_tensors, "backbone.", "head.")["teacher"]
    flat = {f"student.{name}": tensor for name, tensor in _of_student(teacher).items()}
    return flat | {f"teacher.{name}": tensor for name, tensor in teacher.items()}


def flat_student_alone(tensors, head_tensors):
    return {f"student.{name}": tensor for name, tensor in unwrapped(tensors, head_tensors).items()}


def nested_student_alone(tensors, head_tensors):
    return {"student": published(tensors, head_tensors)["teacher"]}


# With 6 x 6 patches and 8 registers, no other front fits the numbers of positions; 14 x 14 are those of S and B.
VARIANTS = {
    "as on the page": Variant(),
    "cls_token": Variant([registers_as("cls_token")]),
    "reg_token": Variant([registers_as("reg_token")]),
    "reg_tokens": Variant([registers_as("reg_tokens")]),
    "registers": Variant([registers_as("registers")]),
    "region_tokens": Variant([registers_as("region_tokens")]),
    "two dimensions": Variant([registers_as("region_tokens", two_dimensional=True)]),
    "positions of a class token": Variant([positions_in_front(class_token=True)]),
    "positions of registers": Variant([positions_in_front(registers=True)]),
    "positions of both, class token left out": Variant(
        [positions_in_front(class_token=True, registers=True), class_token], options={"leave_out": ["cls_token"]}
    ),
    "positions of registers elsewhere": Variant([positions_of_registers_as("register_pos_embed")]),
    "module, no backbone": Variant(wrap=behind("module.", "module.head.")),
    "backbone": Variant(wrap=behind("backbone.", "head.")),
    "compiled": Variant(wrap=behind("module._orig_mod.backbone.", "module._orig_mod.head.")),
    "no wrapper": Variant(wrap=unwrapped),
    "with student": Variant(wrap=with_student),
    "flat with student": Variant(wrap=flat_with_student),
    "flat student": Variant(wrap=flat_student_alone),
    "nested student": Variant(wrap=nested_student_alone),
    "separate q, k and v": Variant([split_qkv("q", "k", "v")]),
    "fused k and v": Variant([split_qkv("q", "kv")]),
    "no qkv bias": Variant(qkv_bias=False),
    "separate q, k and v without bias": Variant([split_qkv("q", "k", "v")], qkv_bias=False),
    "LayerScale": Variant([layer_scales]),
    "mask token": Variant([mask_token]),
    "names of transformers": Variant([names_of_transformers], wrap=unwrapped),
    "no square": Variant([positions_in_front(registers=True)], options={"position_grid": (3, 5)}, grid=(3, 5)),
    "registers in turn": Variant([in_turn], options={"register_order": "register_major"}),
    "registers in turn with positions": Variant(
        [positions_in_front(registers=True), in_turn], options={"register_order": "register_major"}
    ),
}


def as_file(entries):
    """The bytes of a .pth file."""
    file = BytesIO()
    torch.save(entries, file)
    return file.getvalue()
