# Copyright 2026 The RATS for Hugging Face authors. MIT licence.
"""Finds registers and positions among the tokens of a checkpoint of the authors', whose names nobody here has seen.

L patches  N registers  H heads  n = N/H registers per head  D hidden

Registers, positions, a mask token and a class token differ in their shapes. Of their names only "pos", "mask", "cls" and
"class" are looked at.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch

LEAST_SIDE = 3  # rows and columns of the grid of a pretrained model, at least
RegisterOrder = Literal["head_major", "register_major"]
REMEDY = (
    "Name the registers with registers=NAME (--registers NAME), leave out what is no part of the model with leave_out=[NAME] "
    "(--leave_out NAME), and please report this list."
)


class TokenOptions(NamedTuple):
    """What the shapes of tokens may leave open.

    Attributes:
        registers: Name of the registers, where their shape does not tell.
        num_registers: N, where it is to be checked.
        register_order: "head_major": register h * n + j is the j-th of head h, as in RATS here. "register_major": register
            j * H + h is.
        position_grid: Rows and columns of the position embeddings, where they are no square.
    """

    registers: str | None = None
    num_registers: int | None = None
    register_order: RegisterOrder = "head_major"
    position_grid: Sequence[int] | None = None


@dataclass
class Tokens:
    """The tokens that a RATS starts from, and how they were made of those of the checkpoint.

    Attributes:
        tensors: `register_tokens` (1, N, D), head by head, `position_embeddings` (1, L, D), and `mask_token` (1, 1, D) if the
            checkpoint has one.
        sources: Name above -> names in the checkpoint.
        adapted: Name above -> what was changed.
        grid: Rows and columns of the position embeddings.
        assumed: What the checkpoint does not tell -> what was taken to be so.
        not_taken: Name in the checkpoint -> why it was not taken.
    """

    tensors: dict[str, torch.Tensor]
    sources: dict[str, list[str]]
    grid: tuple[int, int]
    adapted: dict[str, str] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    not_taken: dict[str, str] = field(default_factory=dict)


def read_tokens(
    label: str, found: Mapping[str, torch.Tensor], hidden_size: int, num_heads: int, wanted: TokenOptions, everything: str
) -> Tokens:
    """
    Args:
        label: Of the checkpoint, for errors.
        found: Its tensors that are no part of a block, a patch embedding, a norm or a head, by name.
        hidden_size: D.
        num_heads: H.
        wanted: What the shapes may leave open.
        everything: All that the checkpoint holds, for errors.

    Raises:
        ValueError: If tokens are missing, ambiguous or left over, or the registers cannot be shared out among the heads.
    """
    if wanted.register_order not in get_args(RegisterOrder):
        raise ValueError(f"register_order={wanted.register_order!r} must be one of {', '.join(get_args(RegisterOrder))}.")
    kinds: dict[str, dict[str, torch.Tensor]] = {"register": {}, "position": {}, "mask": {}, "class": {}, "unknown": {}}
    for name, tensor in found.items():
        kind = _kind(name, tensor, hidden_size)
        if wanted.registers is not None and kind == "register" and name != wanted.registers:
            kind = "unknown"
        kinds[kind][name] = tensor if kind == "unknown" else tensor.reshape(1, -1, hidden_size)
    _refuse(label, kinds, wanted.registers, everything)
    ((register_name, register_tokens),) = kinds["register"].items()
    count = register_tokens.shape[1]
    _check_number(f"{label} has {count} registers ({register_name})", count, num_heads, wanted.num_registers)

    positions = _read_positions(label, kinds["position"], count, wanted.position_grid, everything)
    tokens = Tokens(
        {"register_tokens": register_tokens, "position_embeddings": positions.of_patches},
        {"register_tokens": [register_name], "position_embeddings": [positions.name]},
        positions.grid,
        {"position_embeddings": positions.change},
        {"register_order": wanted.register_order},
        positions.not_taken,
    )
    changes = []
    if positions.of_registers is not None:
        tokens.tensors["register_tokens"] = register_tokens + positions.of_registers
        tokens.sources["register_tokens"].append(positions.register_name)
        changes.append(f"their positions ({positions.register_name}) are added to them, which is exact")
    if wanted.register_order == "register_major":
        in_heads = tokens.tensors["register_tokens"].unflatten(1, (-1, num_heads))  # (1, n, H, D)
        tokens.tensors["register_tokens"] = in_heads.transpose(1, 2).flatten(1, 2)  # (1, N, D)
        changes.append(f"sorted by head: register j * {num_heads} + h of the checkpoint is the j-th of head h")
    if changes:
        tokens.adapted["register_tokens"] = "; ".join(changes)
    if positions.is_guess:
        tokens.assumed["position_grid"] = f"{positions.grid[0]} x {positions.grid[1]} (the largest of several squares that fit)"
    for name, tensor in kinds["mask"].items():
        tokens.tensors["mask_token"], tokens.sources["mask_token"] = tensor, [name]
    return tokens


def _check_number(found: str, count: int, num_heads: int, expected: int | None) -> None:
    if expected not in (None, count):
        raise ValueError(f"{found}, and num_registers={expected} was given; leave it out, or name another tensor as registers.")
    if count % num_heads:
        raise ValueError(
            f"{found} for {num_heads} heads, but each head owns N / H of them, a whole number; give num_attention_heads if a "
            "head has other than 64 channels, or name another tensor as the registers."
        )


def _kind(name: str, tensor: torch.Tensor, hidden_size: int) -> str:
    last = name.lower().split(".")[-1]
    if not tensor.ndim or tensor.shape[-1] != hidden_size or math.prod(tensor.shape[:-2]) != 1:
        return "unknown"
    if "pos" in last:
        return "position"
    if tensor.numel() > hidden_size:
        return "register"
    if "mask" in last:
        return "mask"
    return "class" if re.search("cls|class", last) else "unknown"


def _refuse(label: str, kinds: Mapping[str, Mapping], registers: str | None, everything: str) -> None:
    """Errors of what is ambiguous, missing or left over."""
    if kinds["class"] and kinds["register"]:
        raise ValueError(
            f"{label} has a class token beside its registers ({', '.join(kinds['class'])}). RATS has none, and without it the "
            "patches may read something else, so that the model becomes another one. Leave it out on purpose with "
            f"leave_out={next(iter(kinds['class']))} (--leave_out)."
        )
    if registers is not None and not kinds["register"]:
        raise ValueError(f"{label} has no tokens named {registers}. {everything} {REMEDY}")
    if len(kinds["register"]) != 1:
        number = f"{len(kinds['register'])} tensors" if kinds["register"] else "no tensor"
        raise ValueError(
            f"{label} has {number} that could be the registers, of shape (1, N, D) or (N, D) with N of at least 2. "
            f"{everything} {REMEDY}"
        )
    if kinds["unknown"] or len(kinds["mask"]) > 1:
        left = [*kinds["unknown"], *list(kinds["mask"])[1:]]
        raise ValueError(f"{label} has tensors for which RATS has no place: {', '.join(left)}. {everything} {REMEDY}")


def listing(found: Mapping[str, torch.Tensor]) -> str:
    """Name and shape of all that was found, those that differ in a number alone in one entry."""
    alike: dict[str, list[str]] = {}
    for name, tensor in found.items():
        entry = f"{re.sub(r'(?<=[.])[0-9]+(?=[.])', '*', name)} {tuple(tensor.shape)}"
        alike.setdefault(entry, []).append(f"{name} {tuple(tensor.shape)}")
    entries = [names[0] if len(names) == 1 else f"{entry} x {len(names)}" for entry, names in alike.items()]
    return f"Found: {'; '.join(entries) or 'nothing'}."


@dataclass
class _Positions:
    of_patches: torch.Tensor  # (1, L, D)
    name: str
    grid: tuple[int, int]
    change: str
    is_guess: bool = False
    of_registers: torch.Tensor | None = None  # (1, N, D)
    register_name: str = ""
    not_taken: dict[str, str] = field(default_factory=dict)


def _read_positions(
    label: str, found: Mapping[str, torch.Tensor], num_registers: int, grid: Sequence[int] | None, everything: str
) -> _Positions:
    """The positions of patches and of registers, in one tensor or in one each."""
    if not found:
        raise ValueError(
            f"{label} has no learned position embeddings, a tensor of shape (1, positions, D) with 'pos' in its name, but RATS "
            f"adds them to its patches. {everything} {REMEDY}"
        )
    of_registers = {name: tensor for name, tensor in found.items() if tensor.shape[1] == num_registers and len(found) > 1}
    of_class = {name: tensor for name, tensor in found.items() if tensor.shape[1] == 1}
    of_patches = {name: tensor for name, tensor in found.items() if name not in {**of_registers, **of_class}}
    if len(of_patches) != 1 or len(of_registers) > 1:
        raise ValueError(
            f"{label} has {len(found)} tensors of positions, of which one must be that of the patches and the others those of "
            f"the {num_registers} registers or a class token. {everything} {REMEDY}"
        )
    ((name, learned),) = of_patches.items()
    front = (0, 1) if of_registers else (0, 1, num_registers, 1 + num_registers)
    fitting = [(before, sides) for before in front if (sides := _sides(learned.shape[1] - before, grid))]
    if not fitting:
        wanted = f"{grid[0]} x {grid[1]} patches" if grid else "a square of patches"
        raise ValueError(
            f"{name} of {label} has {learned.shape[1]} positions, which are not those of {wanted}, alone or behind those of a "
            f"class token, of {num_registers} registers or of both. Give the grid as position_grid=(ROWS, COLUMNS) "
            "(--position_grid ROWS COLUMNS)."
        )
    before, sides = fitting[0]
    change = "unchanged" if not before else f"without the first {before} of {learned.shape[1]}"
    positions = _Positions(learned[:, before:], name, sides, change, len(fitting) > 1)
    if before >= num_registers:
        positions.of_registers, positions.register_name = learned[:, before - num_registers : before], name
    elif of_registers:
        ((positions.register_name, positions.of_registers),) = of_registers.items()
    if before in (1, 1 + num_registers):
        positions.change += "; the first is that of a class token, which is not there"
    positions.not_taken = dict.fromkeys(of_class, "the position of a class token, which is not there")
    return positions


def _sides(patches: int, grid: Sequence[int] | None) -> tuple[int, int] | None:
    """Rows and columns of so many patches; None if the grid that is given, or else a square, has another number."""
    if grid is not None:
        return (grid[0], grid[1]) if grid[0] * grid[1] == patches else None
    root = math.isqrt(max(patches, 0))
    return (root, root) if root >= LEAST_SIDE and root**2 == patches else None


__all__ = ["RegisterOrder", "TokenOptions", "Tokens", "listing", "read_tokens"]
