"""The products that are timed alone are all of the model's products and nothing else."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig

from evaluation import matrix_products
from evaluation.matrix_products import Attention, MatrixProducts, Weights, block_products
from modeling_rats.multiply_accumulates import ARCHITECTURES, multiply_accumulates

TINY_VIT = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, patch_size=8, image_size=32
)
ABLATIONS = [
    {"partition_registers": partition, "communicate": communicate}
    for partition in (True, False)
    for communicate in (True, False)
]


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("scores_at_once", [2**22, 100, 1])
@pytest.mark.parametrize("ablation", [*ABLATIONS, None], ids=str)
def test_they_are_counted_as_the_formula_says(make_config, monkeypatch, ablation, scores_at_once):
    monkeypatch.setattr(matrix_products, "SCORES_AT_ONCE", scores_at_once)
    config = TINY_VIT if ablation is None else make_config(**ablation)
    products = MatrixProducts(config, 48, batch_size=2)
    assert counted(products) == multiply_accumulates(config, 48, 2)
    attention = counted(lambda: products.multiply(weights=False))
    assert attention > 0 and attention + counted(lambda: products.multiply(attention=False)) == counted(products)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_products_of_a_block_add_up(name):
    config = ARCHITECTURES[name]
    embedding = 14 * 14 * config.hidden_size * 3 * 16 * 16
    blocks = config.num_hidden_layers * sum(product.multiply_accumulates for product in block_products(config, 224, 3))
    assert 3 * embedding + blocks == multiply_accumulates(config, 224, 3)


def test_shapes_are_those_of_the_three_steps(make_config):
    products = block_products(make_config(), 48, 2)  # 4 heads of 8 channels with 2 registers each, 36 patches
    assert [product for product in products if isinstance(product, Attention)] == [
        Attention(8, 2, 36, 8),  # compress
        Attention(8, 2, 2, 8),  # communicate
        Attention(8, 36, 2, 8),  # broadcast
    ]
    assert [product for product in products if isinstance(product, Weights) and product.times > 1] == [
        Weights(4, 4, 32, 8),  # queries of registers, head by head
        Weights(4, 4, 8, 32),  # what leaves them
    ]


def test_numbers_have_the_type_that_was_asked_for(make_config):
    products = MatrixProducts(make_config(), 32, dtype=torch.bfloat16)
    products()
    assert {tensor.dtype for tensor in [products.image, products.kernel, *products._ready.values()]} == {torch.bfloat16}
