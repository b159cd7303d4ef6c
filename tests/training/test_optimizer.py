"""Which parameters are decayed, and clipping of each gradient by itself."""

import pytest
import torch

from modeling_rats import RatsForPreTraining
from training.optimizer import build_optimizer, clip_gradients, clip_gradients_together, set_schedule


@pytest.fixture
def model(make_config):
    return RatsForPreTraining(make_config())


def names_of(model, parameters):
    chosen = {id(parameter) for parameter in parameters}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def test_matrices_decay_and_biases_and_norms_do_not(model):
    decaying, others = build_optimizer(model).param_groups
    names, other_names = names_of(model, decaying["params"]), names_of(model, others["params"])
    assert names | other_names == {name for name, _ in model.named_parameters()} - {"rats.embeddings.mask_token"}
    assert all(name.endswith("bias") or "layernorm" in name for name in other_names)
    assert not any(name.endswith("bias") or "layernorm" in name for name in names)
    assert {"rats.embeddings.register_tokens", "rats.embeddings.position_embeddings"} <= names


def test_frozen_parameters_are_left_out(model):
    model.rats.embeddings.register_tokens.requires_grad_(False)
    groups = build_optimizer(model).param_groups
    names = names_of(model, [one for group in groups for one in group["params"]])
    assert not names & {"rats.embeddings.mask_token", "rats.embeddings.register_tokens"}


def test_schedule_sets_both_groups(model):
    optimizer = build_optimizer(model)
    set_schedule(optimizer, learning_rate=0.1, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.1, 0.3), (0.1, 0.0)]


def test_a_step_is_one_of_plain_adamw(model):
    optimizer = build_optimizer(model)
    copy = RatsForPreTraining(model.config)
    copy.load_state_dict(model.state_dict())
    torch_optimizer = torch.optim.AdamW(
        [
            {"params": [one for one in copy.parameters() if one.ndim > 1], "weight_decay": 0.3},
            {"params": [one for one in copy.parameters() if one.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    set_schedule(optimizer, learning_rate=0.01, weight_decay=0.3)
    images = torch.rand(2, 3, 32, 32)
    for network, its_optimizer in ((model, optimizer), (copy, torch_optimizer)):
        network(images).logits.square().sum().backward()
        for name, parameter in network.named_parameters():
            if name.endswith("k_proj.bias"):
                parameter.grad.zero_()  # zero but for rounding, which AdamW would blow up
        its_optimizer.step()
    for (name, parameter), other in zip(model.named_parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 3.0])
def test_each_gradient_is_clipped_by_itself(model, max_norm):
    generator = torch.Generator().manual_seed(0)
    for index, parameter in enumerate(model.parameters()):
        if index % 5:  # some have no gradient
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (index % 4 - 3)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    total = clip_gradients(model, max_norm)
    clipped = 0
    for name, parameter in model.named_parameters():
        if name not in gradients:
            assert parameter.grad is None
            continue
        norm = gradients[name].norm()
        scale = max_norm / (norm + 1e-6) if max_norm and norm > max_norm else torch.tensor(1.0)
        clipped += int(scale < 1)
        torch.testing.assert_close(parameter.grad, gradients[name] * scale)
    assert (clipped > 0) == (max_norm > 0) and clipped < len(gradients)
    torch.testing.assert_close(
        total, torch.cat([gradient.flatten() for gradient in gradients.values()]).norm(), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_all_gradients_are_clipped_together(model, max_norm):
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for index, parameter in enumerate(model.parameters()) if index % 5]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = [parameter.grad.clone() for parameter in parameters]
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm or torch.inf)
    theirs = [parameter.grad.clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    torch.testing.assert_close(clip_gradients_together(model, max_norm), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close([parameter.grad for parameter in parameters], theirs, rtol=1e-5, atol=0)
