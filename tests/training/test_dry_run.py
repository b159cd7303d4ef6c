"""The description of a run: its numbers against counting, and that it trains nothing."""

import pytest
import torch

from modeling_rats import RatsForPreTraining
from training.dry_run import saved_bytes


@pytest.fixture
def network(make_config):
    with torch.device("meta"):
        return RatsForPreTraining(make_config())


def test_kept_bytes_grow_with_the_images_and_hold_the_tokens(network):
    one, four = saved_bytes(network, {32: 2}, images=1), saved_bytes(network, {32: 2}, images=4)
    assert 3.5 < four / one < 4.1
    tokens = 2 * (8 + 16) * 32 * 4  # of one activation of the two views of an image, in bytes
    assert one > 2 * 5 * tokens  # each of the two blocks keeps several


def test_kept_bytes_equal_those_of_a_real_pass(make_config, network):
    real = RatsForPreTraining(make_config()).train()
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in real.parameters()}

    def keep(tensor):
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in own:
            kept[pointer] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = real(torch.rand(6, 3, 32, 32)).logits
    assert logits.requires_grad
    total = sum(size for _, size in kept.values())
    assert saved_bytes(network, {32: 2}, images=3) == pytest.approx(total, rel=0.05)
