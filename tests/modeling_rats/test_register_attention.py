"""Register attention against its literal definition: everything computed, foreign heads' slots zero, one head at a time."""

import copy
import warnings

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from modeling_rats import RatsModel
from modeling_rats.register_attention import RatsRegisterAttention, can_slice

BATCH, PATCHES = 2, 5
SWITCHES = [
    {},
    {"partition_registers": False},
    {"communicate": False},
    {"partition_registers": False, "communicate": False, "num_registers": 7},
    {"qkv_bias": False},
    {"num_registers": 4},
]


def literal_register_attention(attention, hidden_states, registers_only=False):
    """The three steps as the paper draws them: all projections of all tokens, head by head, zeros in foreign slots."""
    config, num_registers = attention.config, attention.num_registers
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def project(projection, tokens):
        # Registers and patches apart only because an int8 layer scales what it is given by its largest value.
        return torch.cat([projection(tokens[:, :num_registers]), projection(tokens[:, num_registers:])], dim=1)

    queries = project(attention.q_proj, hidden_states)  # (B, N + L, D)
    keys = project(attention.k_proj, hidden_states)  # (B, N + L, D)
    values = project(attention.v_proj, hidden_states)  # (B, N + L, D)
    slots = torch.zeros_like(values)  # (B, N + L, D), the heads' outputs side by side
    for head in range(heads):
        channels = slice(head * head_dim, (head + 1) * head_dim)
        owned = slice(0, num_registers)
        if config.partition_registers:
            per_head = num_registers // heads
            owned = slice(head * per_head, (head + 1) * per_head)
        patches = slice(num_registers, None)
        compressed = softmax_attention(queries[:, owned, channels], keys[:, patches, channels], values[:, patches, channels])
        communicated = compressed
        if config.communicate:
            communicated = softmax_attention(compressed, compressed, compressed)
        slots[:, owned, channels] = communicated
        slots[:, patches, channels] = softmax_attention(queries[:, patches, channels], communicated, communicated)
    outputs = project(attention.o_proj, slots)  # (B, N + L, D)
    return outputs[:, :num_registers] if registers_only else outputs


def softmax_attention(queries, keys, values):
    return torch.softmax(queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5, dim=-1) @ values


@pytest.fixture
def make_attention(make_config):
    """An attention layer with weights large enough that the softmaxes are far from uniform, biases included."""

    def make(implementation="sdpa", dtype=torch.float32, **overrides):
        config = make_config(**overrides)
        config._attn_implementation = implementation
        attention = RatsRegisterAttention(config)
        torch.manual_seed(0)
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.25)
        return attention.to(dtype)

    return make


def make_tokens(attention, seed=1):
    dtype, generator = next(attention.parameters()).dtype, torch.Generator().manual_seed(seed)
    tokens = torch.randn(BATCH, attention.num_registers + PATCHES, attention.config.hidden_size, generator=generator)
    return tokens.to(dtype)


def values_and_gradients(function, attention, tokens, **kwargs):
    """The output, and the gradients of a fixed random projection of it by the tokens and each parameter."""
    tokens = tokens.clone().requires_grad_()
    attention.zero_grad()
    output = function(tokens, **kwargs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    (output * weights).sum().backward()
    gradients = {name: copy.deepcopy(parameter.grad) for name, parameter in attention.named_parameters()}
    return output.detach(), {"tokens": tokens.grad, **gradients}


def assert_equals_literal(attention, tolerance=1e-11, **kwargs):
    """Values and gradients, to `tolerance` of the largest number among them."""
    tokens = make_tokens(attention)
    output, gradients = values_and_gradients(lambda *args, **kw: attention(*args, **kw)[0], attention, tokens, **kwargs)
    expected, expected_gradients = values_and_gradients(
        lambda *args, **kw: literal_register_attention(attention, *args, **kw), attention, tokens, **kwargs
    )
    for name, tensor in {"output": expected, **expected_gradients}.items():
        actual = output if name == "output" else gradients[name]
        assert (actual is None) == (tensor is None), name
        if tensor is not None:
            assert (actual - tensor).abs().max() <= tolerance * max(tensor.abs().max(), 1.0), name


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("registers_only", [False, True])
@pytest.mark.parametrize(
    "implementation, dtype, tolerance",
    [("sdpa", torch.float64, 1e-11), ("sdpa", torch.float32, 1e-5), ("eager", torch.float32, 1e-5)],
)
def test_values_and_gradients_equal_the_literal_definition(
    make_attention, switches, registers_only, implementation, dtype, tolerance
):
    attention = make_attention(implementation, dtype, **switches)
    assert_equals_literal(attention, tolerance, registers_only=registers_only)


@pytest.mark.parametrize(
    "switches, changed",
    [
        ({}, {4, 5}),  # head 2 owns registers 4 and 5
        ({"communicate": False}, {5}),
        ({"partition_registers": False}, set(range(8))),
        ({"partition_registers": False, "communicate": False}, {5}),
    ],
    ids=str,
)
def test_a_register_reaches_only_registers_of_its_own_head(make_attention, switches, changed):
    attention = make_attention(**switches)
    tokens = make_tokens(attention)
    perturbed = tokens.clone()
    perturbed[:, 5] += 1.0
    difference = (attention(perturbed)[0] - attention(tokens)[0]).abs().amax(dim=(0, 2))  # (N + L,)
    assert set(difference[:8].nonzero().flatten().tolist()) == changed
    assert (difference[8:] > 0).all()  # the patches hear of it


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_eager_equals_sdpa(make_attention, switches):
    eager, sdpa = make_attention("eager", **switches), make_attention("sdpa", **switches)
    tokens = make_tokens(eager)
    torch.testing.assert_close(eager(tokens)[0], sdpa(tokens)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("partition_registers, per_head", [(True, 2), (False, 8)])
def test_eager_returns_three_maps_whose_rows_sum_to_one(make_attention, partition_registers, per_head):
    attention = make_attention("eager", partition_registers=partition_registers)
    _, compress, communicate, broadcast = attention(make_tokens(attention))
    assert compress.shape == (BATCH, 4, per_head, PATCHES)
    assert communicate.shape == (BATCH, 4, per_head, per_head)
    assert broadcast.shape == (BATCH, 4, PATCHES, per_head)
    for attention_map in (compress, communicate, broadcast):
        torch.testing.assert_close(attention_map.sum(dim=-1), torch.ones(attention_map.shape[:-1]))


def test_maps_that_do_not_exist_are_none(make_attention):
    attention = make_attention("eager")
    assert attention(make_tokens(attention), registers_only=True)[3] is None
    attention = make_attention("eager", communicate=False)
    assert [one is None for one in attention(make_tokens(attention))] == [False, False, True, False]
    attention = make_attention("sdpa")
    assert [one is None for one in attention(make_tokens(attention))] == [False, True, True, True]


def test_attention_is_not_causal(make_attention):
    assert make_attention().is_causal is False


# Where a weight must not be sliced


class LoraLinear(nn.Linear):
    """A low-rank addition in a subclass of nn.Linear."""

    def __init__(self, base):
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.down, self.up = nn.Linear(base.in_features, 3, bias=False), nn.Linear(3, base.out_features, bias=False)

    def forward(self, tokens):
        return super().forward(tokens) + self.up(self.down(tokens))


class WrappedLinear(nn.Module):
    """As PEFT does it: the linear layer inside another module that shows its weight."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.delta = base, nn.Linear(base.in_features, base.out_features, bias=False)

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, tokens):
        return self.base_layer(tokens) + self.delta(tokens)


class OnlyLinearWeight(torch.Tensor):
    """As torchao's quantised weights: a tensor of floating type in an nn.Linear that knows F.linear alone."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.unflatten, torch.einsum):
            raise NotImplementedError(f"{function} of a quantised weight")
        if function is nn.functional.linear:
            tokens, weight, bias = args
            return nn.functional.linear(tokens, 2 * weight.as_subclass(torch.Tensor), bias)
        return super().__torch_function__(function, types, args, kwargs or {})


def with_foreign_weight(linear):
    linear = copy.deepcopy(linear)
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(OnlyLinearWeight), requires_grad=False)
    return linear


class Doubling(ModelHook):
    def post_forward(self, module, output):
        return 2 * output


def with_accelerate_hook(linear):
    """As accelerate attaches its hooks: the instance gets a forward of its own, the weight stays where it is."""
    return add_hook_to_module(copy.deepcopy(linear), Doubling())


def with_parametrization(linear):
    return nn.utils.parametrizations.weight_norm(copy.deepcopy(linear))


@pytest.mark.parametrize("names", [["q_proj"], ["o_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]], ids=str)
@pytest.mark.parametrize(
    "replace", [LoraLinear, WrappedLinear, with_foreign_weight, with_accelerate_hook, with_parametrization]
)
def test_replaced_projections_equal_the_literal_definition(make_attention, replace, names):
    attention = make_attention()
    for name in names:
        setattr(attention, name, replace(getattr(attention, name)))
    assert_equals_literal(attention.double())


@pytest.mark.parametrize("name", ["q_proj", "o_proj"])
@pytest.mark.parametrize(
    "kind, hook",
    [
        ("register_forward_hook", lambda module, args, output: 2 * output + 1),
        ("register_forward_pre_hook", lambda module, args: (args[0] * 3,)),
        ("register_full_backward_hook", lambda module, grad_input, grad_output: (grad_input[0] * 5,)),
        ("register_full_backward_pre_hook", lambda module, grad_output: (grad_output[0] * 7,)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hooks_act_on_registers_as_in_the_literal_definition(make_attention, name, kind, hook):
    attention = make_attention(dtype=torch.float64)
    getattr(getattr(attention, name), kind)(hook)
    assert_equals_literal(attention)


def test_hooks_see_registers_and_patches(make_attention):
    attention, seen = make_attention(), {}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        hook = lambda module, args, output, name=name: seen.setdefault(name, []).append(output.shape[1])  # noqa: E731
        getattr(attention, name).register_forward_hook(hook)
    attention(make_tokens(attention))
    assert seen == {"q_proj": [8, PATCHES], "k_proj": [PATCHES], "v_proj": [PATCHES], "o_proj": [8, PATCHES]}


def test_a_bare_linear_is_sliced(make_attention, monkeypatch):
    attention = make_attention()
    tokens = make_tokens(attention)
    calls = []
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: calls.append(x.shape[1]) or nn.functional.linear(x, self.weight))
    attention(tokens)
    assert calls == [PATCHES] * 4  # k, v, q, o: never on the registers
    assert can_slice(attention.q_proj, tokens)
    assert not can_slice(attention.q_proj, tokens.to("meta"))
    assert not can_slice(attention.q_proj.to("meta"), tokens)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("pooled_only", [False, True])
def test_offloaded_model_equals_the_one_in_memory(make_config, offload, pooled_only, tmp_path):
    model = RatsModel(make_config()).eval()
    pixel_values = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        expected = model(pixel_values, pooled_only=pooled_only).last_hidden_state
        if offload == "cpu":
            cpu_offload(model, execution_device="cpu")
        else:
            disk_offload(model, str(tmp_path), execution_device="cpu")
        assert model.encoder.layer[0].attention.q_proj.weight.is_meta
        torch.testing.assert_close(model(pixel_values, pooled_only=pooled_only).last_hidden_state, expected)


def test_int8_layers_equal_the_literal_definition(make_attention):
    attention = make_attention()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is being moved to torchao
        quantized = torch.ao.quantization.quantize_dynamic(attention, {nn.Linear}, dtype=torch.qint8)
    assert type(quantized.q_proj) is not nn.Linear
    tokens = make_tokens(attention)
    with torch.no_grad():
        outputs = quantized(tokens)[0]
        torch.testing.assert_close(outputs, literal_register_attention(quantized, tokens), atol=1e-5, rtol=1e-5)
        assert 0 < (outputs - attention(tokens)[0]).abs().max() < 0.5  # close to, but not, the layer in float


@pytest.mark.parametrize("name", ["q_proj", "o_proj"])
def test_under_autocast_sliced_and_unsliced_agree(make_attention, name):
    sliced = make_attention()
    unsliced = copy.deepcopy(sliced)
    getattr(unsliced, name).register_forward_hook(lambda module, args, output: None)
    tokens = make_tokens(sliced)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, expected = sliced(tokens)[0], unsliced(tokens)[0]
    assert outputs.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, expected, atol=0.1, rtol=0.05)
