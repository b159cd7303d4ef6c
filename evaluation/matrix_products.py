"""The matrix products of a forward pass, without anything else: the limit that its time is held against.

B batch  L patches  N registers  H heads  D hidden  d = D/H head dim  I width of the MLP  M registers that a head holds
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from modeling_rats.configuration_rats import height_width
from modeling_rats.multiply_accumulates import patches_of, registers_of_head

SCORES_AT_ONCE = 2**22  # of attention; more would not stay in a CPU's cache, and at 2048 px would fill its memory


class Weights(NamedTuple):
    """Products of tokens with weights: `times` of (rows, inputs) x (inputs, outputs)."""

    times: int
    rows: int
    inputs: int
    outputs: int

    @property
    def multiply_accumulates(self) -> int:
        return self.times * self.rows * self.inputs * self.outputs


class Attention(NamedTuple):
    """`times` the two products of attention, (queries, channels) x (channels, keys) and (queries, keys) x (keys, channels)."""

    times: int
    queries: int
    keys: int
    channels: int

    @property
    def multiply_accumulates(self) -> int:
        return self.times * 2 * self.queries * self.keys * self.channels


def block_products(config: PreTrainedConfig, image_size: int, batch_size: int = 1) -> list[Weights | Attention]:
    """The products of one block in the order in which the model computes them.

    Args:
        config: Of a RATS or ViT.
        image_size: Side of the square images, in pixels.
        batch_size: Number of images.
    """
    width, heads, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
    channels, patches = width // heads, patches_of(config, image_size)
    if config.model_type == "vit":
        tokens = patches + 1
        projection = Weights(1, batch_size * tokens, width, width)
        attention: list[Weights | Attention] = [
            *[projection] * 3,
            Attention(batch_size * heads, tokens, tokens, channels),
            projection,
        ]
    else:
        tokens, of_head = patches + config.num_registers, registers_of_head(config)
        projection = Weights(1, batch_size * patches, width, width)
        if config.partition_registers:
            queries_of_registers = Weights(heads, batch_size * of_head, width, channels)
            outputs_of_registers = Weights(heads, batch_size * of_head, channels, width)
        else:
            queries_of_registers = outputs_of_registers = Weights(1, batch_size * config.num_registers, width, width)
        communicate = [Attention(batch_size * heads, of_head, of_head, channels)] if config.communicate else []
        attention = [
            *[projection] * 2,  # keys and values
            queries_of_registers,
            Attention(batch_size * heads, of_head, patches, channels),  # compress
            *communicate,
            outputs_of_registers,
            projection,  # queries
            Attention(batch_size * heads, patches, of_head, channels),  # broadcast
            projection,
        ]
    mlp = [Weights(1, batch_size * tokens, width, inner), Weights(1, batch_size * tokens, inner, width)]
    return [*attention, *mlp]


class MatrixProducts:
    """Computes the matrix products of a forward pass on random numbers; a call runs all of them.

    As in the model each block has weights of its own. What the model does besides is left out: biases, activations,
    normalisation, copies, and the memory for results, which here lies ready. Attention multiplies as many queries at a time as
    give `SCORES_AT_ONCE` scores, as kernels do that never hold the whole map.

    Args:
        config: Of a RATS or ViT.
        image_size: Side of the square images, in pixels.
        batch_size: Number of images.
        dtype: Of all numbers.
        device: Where they lie.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        image_size: int,
        batch_size: int = 1,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        self.dtype, self.device = dtype, device
        self._ready: dict[tuple, torch.Tensor] = {}
        patch = height_width(config.patch_size)
        self.image = self._random(batch_size, config.num_channels, image_size, image_size)  # (B, C, height, width)
        self.kernel = self._random(config.hidden_size, config.num_channels, *patch)
        products = block_products(config, image_size, batch_size)
        self.blocks = [
            [product if isinstance(product, Attention) else (product, self._weight(product)) for product in products]
            for _ in range(config.num_hidden_layers)
        ]

    def __call__(self) -> None:
        self.multiply()

    @torch.inference_mode()
    def multiply(self, attention: bool = True, weights: bool = True) -> None:
        """Run the products.

        Args:
            attention: Those of attention.
            weights: Those with weights, the patch embedding's among them.
        """
        if weights:
            nn.functional.conv2d(self.image, self.kernel, stride=self.kernel.shape[2:])
        for block in self.blocks:
            for product in block:
                if isinstance(product, Attention):
                    if attention:
                        self._attend(product)
                elif weights:
                    self._multiply(*product)

    def _multiply(self, product: Weights, weight: torch.Tensor) -> None:
        tokens = self._tensor("tokens", product.times, product.rows, product.inputs)
        result = self._tensor("result", product.times, product.rows, product.outputs)
        if product.times == 1:
            torch.mm(tokens[0], weight[0].T, out=result[0])
        else:
            torch.bmm(tokens, weight.mT, out=result)

    def _attend(self, attention: Attention) -> None:
        times, _, keys, channels = attention
        queries = self._tensor("queries", times, attention.queries, channels)
        keys_and_values = self._tensor("keys", times, keys, channels), self._tensor("values", times, keys, channels)
        rows = min(attention.queries, max(1, SCORES_AT_ONCE // (times * keys)))
        for first in range(0, attention.queries, rows):
            some = queries[:, first : first + rows]  # (B H, rows, d)
            scores = self._tensor("scores", times, some.shape[1], keys)
            torch.bmm(some, keys_and_values[0].mT, out=scores)
            torch.bmm(scores, keys_and_values[1], out=self._tensor("attended", times, some.shape[1], channels))

    def _tensor(self, use: str, *shape: int) -> torch.Tensor:
        """The tensor of this use and shape, made when it is first needed: all blocks share it."""
        if (use, shape) not in self._ready:
            self._ready[use, shape] = self._random(*shape)
        return self._ready[use, shape]

    def _weight(self, product: Weights) -> torch.Tensor:
        return self._random(product.times, product.outputs, product.inputs)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)
