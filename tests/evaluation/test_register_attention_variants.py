"""Each variant against its literal definition, one head at a time; as models, they are saved, loaded and read as RATS is."""

import copy
import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from evaluation import part_segmentation
from evaluation.backbones import load_backbone
from evaluation.register_attention_variants import (
    RATS_FOR_PARTS,
    VARIANTS,
    RatsVariantConfig,
    RatsVariantForPartSegmentation,
    RatsVariantForPreTraining,
    RatsVariantModel,
    VariableRegisterAttention,
    is_rats,
)
from evaluation.segmenters import load_rats, untrained_like
from evaluation.synthetic_parts import write_dataset
from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsForPreTraining, RatsImageProcessor, RatsModel
from modeling_rats.register_attention import RatsRegisterAttention

BATCH, PATCHES = 2, 5
CASES = [
    ("register_keys", {}),
    ("register_keys", {"communicate": False}),
    ("register_keys", {"num_registers": 4, "qkv_bias": False}),
    ("projected_communicate", {}),
    ("projected_communicate", {"qkv_bias": False}),
    ("all_heads", {}),
    ("all_heads", {"communicate": False}),
    ("perceiver", {}),
    ("perceiver", {"num_registers": 7}),
]
PER_HEAD = {"register_keys": 2, "projected_communicate": 2, "all_heads": 2, "perceiver": 8}  # registers of a head
OWN_KEYS = {"register_keys": 2, "projected_communicate": 0, "all_heads": 0, "perceiver": 0}  # of them that compress reads
MODELS = {
    RatsVariantModel: RatsModel,
    RatsVariantForPreTraining: RatsForPreTraining,
    RatsVariantForPartSegmentation: RatsForPartSegmentation,
}


@pytest.fixture
def make_variant_config(make_config):
    """The tiny configuration with a variant's attention, and what that needs."""
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_registers", "patch_size")
    sizes += ("image_size", "num_prototypes", "head_hidden_size", "head_bottleneck_size")
    tiny = {name: getattr(make_config(), name) for name in sizes}

    def make(variant, **overrides):
        return RatsVariantConfig(**tiny | dict(VARIANTS[variant].needs) | overrides, attention_variant=variant)

    return make


@pytest.fixture
def make_attention(make_variant_config):
    """An attention layer with weights large enough that the softmaxes are far from uniform, biases included."""

    def make(variant, implementation="sdpa", dtype=torch.float64, **overrides):
        config = make_variant_config(variant, **overrides)
        config._attn_implementation = implementation
        return with_large_weights(VARIANTS[variant](config)).to(dtype)

    return make


@pytest.fixture
def make_model(make_variant_config):
    """A model in evaluation mode whose tokens differ."""

    def make(variant, model_class=RatsVariantModel, **overrides):
        return with_large_weights(model_class(make_variant_config(variant, **overrides))).eval()

    return make


def with_large_weights(module):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.25)
    return module


def make_tokens(attention):
    dtype, generator = next(attention.parameters()).dtype, torch.Generator().manual_seed(1)
    tokens = torch.randn(BATCH, attention.num_registers + PATCHES, attention.config.hidden_size, generator=generator)
    return tokens.to(dtype)


def make_images(height=24, width=40):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))


# What a block computes


def literal_variant(variant, attention, tokens):
    """All projections of all tokens, one image and head at a time, and each head's output in its slot."""
    config, num_registers = attention.config, attention.num_registers
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    register_places, patch_places = [*range(num_registers)], [*range(num_registers, tokens.shape[1])]
    outputs = []
    for image in tokens:  # (N + L, D)
        queries, keys, values = (linear(getattr(attention, f"{name}_proj"), image) for name in "qkv")  # (N + L, D)
        slots = torch.zeros_like(image)
        for head in range(heads):
            channels = range(head * head_dim, (head + 1) * head_dim)
            own, read = register_places, patch_places
            if variant != "perceiver":
                per_head = num_registers // heads
                own = register_places[head * per_head : (head + 1) * per_head]
            if variant == "register_keys":
                read = own + patch_places
            compressed = softmax_attention(
                pick(queries, own, channels), pick(keys, read, channels), pick(values, read, channels)
            )  # (n, d)
            communicated = compressed
            if variant == "projected_communicate":
                projections = (getattr(attention, f"communicate_{name}_proj") for name in "qkv")
                communicated = softmax_attention(*(linear(projection, compressed) for projection in projections))
            elif config.communicate:
                communicated = softmax_attention(compressed, compressed, compressed)
            for slot in range(heads) if variant == "all_heads" else [head]:
                for place, row in zip(own, communicated, strict=True):
                    slots[place, slot * head_dim : (slot + 1) * head_dim] = row
            to_read = (communicated, communicated)
            if variant == "perceiver":
                to_read = (pick(keys, own, channels), pick(values, own, channels))
            slots[num_registers:, channels] = softmax_attention(pick(queries, patch_places, channels), *to_read)
        outputs.append(linear(attention.o_proj, slots))
    return torch.stack(outputs)  # (B, N + L, D)


def linear(projection, tokens):
    return tokens @ projection.weight.T + (0 if projection.bias is None else projection.bias)


def pick(tokens, places, channels):
    return tokens[list(places)][:, list(channels)]


def softmax_attention(queries, keys, values):
    return torch.softmax(queries @ keys.T / queries.shape[-1] ** 0.5, dim=-1) @ values


def values_and_gradients(function, attention, tokens):
    """The output, and the gradients of a fixed random projection of it by the tokens and each parameter."""
    tokens = tokens.clone().requires_grad_()
    attention.zero_grad()
    output = function(tokens)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3)).to(output.dtype)
    (output * weights).sum().backward()
    gradients = {name: copy.deepcopy(parameter.grad) for name, parameter in attention.named_parameters()}
    return {"output": output.detach(), "tokens": tokens.grad, **gradients}


@pytest.mark.parametrize("registers_only", [False, True])
@pytest.mark.parametrize("variant, switches", CASES, ids=str)
def test_values_and_gradients_equal_the_literal_definition(make_attention, variant, switches, registers_only):
    attention = make_attention(variant, **switches)
    tokens, kept = make_tokens(attention), attention.num_registers if registers_only else None
    actual = values_and_gradients(lambda given: attention(given, registers_only=registers_only)[0], attention, tokens)
    expected = values_and_gradients(lambda given: literal_variant(variant, attention, given)[:, :kept], attention, tokens)
    for name, tensor in expected.items():
        assert (actual[name] - tensor).abs().max() <= 1e-11 * max(tensor.abs().max(), 1.0), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_two_variants_and_not_rats_are_the_same(make_attention, variant):
    attention = make_attention(variant)
    tokens = make_tokens(attention)
    partitioned = attention.config.partition_registers
    others = {one for one in VARIANTS.values() if one.needs["partition_registers"] == partitioned} - {VARIANTS[variant]}
    for other in (RatsRegisterAttention, *others):
        rival = other(attention.config).double()
        rival.load_state_dict(attention.state_dict(), strict=False)
        output, its_output = attention(tokens)[0], rival(tokens)[0]
        assert not torch.allclose(output, its_output), other


@pytest.mark.parametrize("registers_only", [False, True])
@pytest.mark.parametrize("switches", [{}, {"communicate": False}, {"partition_registers": False}], ids=str)
def test_with_nothing_replaced_it_is_the_attention_of_rats(make_config, switches, registers_only):
    config = make_config(**switches)
    config._attn_implementation = "eager"
    plain, variable = with_large_weights(RatsRegisterAttention(config)), VariableRegisterAttention(config)
    variable.load_state_dict(plain.state_dict())
    tokens = make_tokens(plain)
    for one, other in zip(plain(tokens, registers_only), variable(tokens, registers_only), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_eager_equals_sdpa_and_its_maps_have_rows_that_sum_to_one(make_attention, variant):
    eager, sdpa = (make_attention(variant, name) for name in ("eager", "sdpa"))
    tokens, per_head = make_tokens(eager), PER_HEAD[variant]
    output, compress, communicate, broadcast = eager(tokens)
    torch.testing.assert_close(output, sdpa(tokens)[0], atol=1e-5, rtol=1e-5)  # the eager softmax is one of float32
    assert [one is None for one in sdpa(tokens)] == [False, True, True, True]
    assert compress.shape == (BATCH, 4, per_head, OWN_KEYS[variant] + PATCHES)
    assert broadcast.shape == (BATCH, 4, PATCHES, per_head)
    assert (communicate is None) == (variant == "perceiver")
    assert communicate is None or communicate.shape == (BATCH, 4, per_head, per_head)
    for attention_map in (compress, communicate, broadcast):
        if attention_map is not None:
            assert torch.allclose(attention_map.sum(dim=-1), torch.ones(attention_map.shape[:-1], dtype=torch.float64))
    assert eager(tokens, registers_only=True)[3] is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_compress_maps_have_own_registers_first_and_then_the_patches(make_attention, variant):
    attention = make_attention(variant, "eager")
    tokens, per_head = make_tokens(attention), PER_HEAD[variant]
    queries, keys = linear(attention.q_proj, tokens), linear(attention.k_proj, tokens)  # (B, N + L, D)
    maps = attention(tokens)[1]
    for head in range(4):
        channels, first = slice(8 * head, 8 * head + 8), 0 if variant == "perceiver" else head * per_head
        own, patches = slice(first, first + per_head), keys[:, 8:, channels]
        read = torch.cat([keys[:, own, channels], patches], dim=1) if OWN_KEYS[variant] else patches
        expected = torch.softmax(queries[:, own, channels] @ read.transpose(1, 2) / 8**0.5, dim=-1)
        torch.testing.assert_close(maps[:, head], expected, atol=1e-5, rtol=1e-5)


# Models


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_class", MODELS)
def test_every_block_has_the_attention_and_the_first_weights_are_those_of_rats(
    make_config, make_variant_config, model_class, variant
):
    torch.manual_seed(4)
    model = model_class(make_variant_config(variant, initializer_range=0.5))
    layers = model.base_model.encoder.layer
    assert [type(layer.attention) for layer in layers] == [VARIANTS[variant]] * 2
    assert all(layer.attention.config is model.config for layer in layers)  # set_attn_implementation reaches them
    torch.manual_seed(4)
    plain = MODELS[model_class](make_config(initializer_range=0.5)).state_dict()
    weights = model.state_dict()
    added = {name for name in weights if ".communicate_" in name}
    assert weights.keys() == plain.keys() | added and bool(added) == (variant == "projected_communicate")
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    for name in added:
        expected = 0 if name.endswith("bias") else pytest.approx(0.5, rel=0.35)  # of 64 numbers
        assert weights[name].std().item() == expected, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_maps_are_recorded_once_a_block(make_model, variant):
    model = make_model(variant, RatsVariantForPartSegmentation)
    model.set_attn_implementation("eager")
    computed = []
    for layer in model.rats.encoder.layer:
        layer.attention.register_forward_hook(lambda _module, _inputs, outputs: computed.append(outputs[1:]))
    asked = {"output_attentions": True, "output_broadcast_attentions": True}
    if variant != "perceiver":
        asked["output_communicate_attentions"] = True
    with torch.no_grad():
        outputs = model(make_images(), **asked)
    recorded = [outputs.attentions, outputs.communicate_attentions, outputs.broadcast_attentions]
    assert len(computed) == 2 and outputs.attentions[0].shape == (2, 4, PER_HEAD[variant], OWN_KEYS[variant] + 15)
    for index, maps in enumerate(recorded):
        if index == 1 and variant == "perceiver":
            assert maps is None
        else:
            assert len(maps) == 2 and all(torch.equal(one, block[index]) for one, block in zip(maps, computed, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_registers_alone_are_those_of_the_whole_pass(make_model, variant):
    model, images = make_model(variant, RatsVariantForPreTraining), make_images()
    with torch.no_grad():
        whole, registers = model.rats(images), model.rats(images, pooled_only=True)
        logits = model(images).logits
    assert registers.last_hidden_state.shape == (2, 8, 32)
    torch.testing.assert_close(registers.last_hidden_state, whole.last_hidden_state[:, :8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, model.head(whole.pooler_output), atol=1e-5, rtol=1e-5)


def test_what_the_part_layer_leaves_unused_stays_frozen(make_model):
    model = make_model("projected_communicate", RatsVariantForPartSegmentation, part_layer=1)
    unused = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    layer = {f"rats.encoder.layer.1.{name}" for name, _ in model.rats.encoder.layer[1].named_parameters()}
    assert unused == layer | {"rats.embeddings.mask_token"}


# Folders


def outputs_of(model, images):
    with torch.no_grad():
        return model.eval()(images).to_tuple()


@pytest.mark.parametrize(
    "model_class, variant",
    [*((RatsVariantForPartSegmentation, variant) for variant in VARIANTS)]
    + [(model_class, "projected_communicate") for model_class in (RatsVariantModel, RatsVariantForPreTraining)],
)
def test_a_saved_folder_gives_the_same_outputs_and_names_no_remote_code(make_model, tmp_path, model_class, variant):
    model, images = make_model(variant, model_class), make_images()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["model_type"], saved["attention_variant"]) == ("rats_variant", variant)
    assert saved["architectures"] == [model_class.__name__] and not {"auto_map", "custom_pipelines"} & saved.keys()
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(loaded) is model_class and loaded.config.to_diff_dict() == model.config.to_diff_dict()
    for one, other in zip(outputs_of(loaded, images), outputs_of(model, images), strict=True):
        assert torch.equal(one, other)
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is RatsVariantModel and type(AutoConfig.from_pretrained(tmp_path)) is RatsVariantConfig
    assert torch.equal(outputs_of(backbone, images)[0], outputs_of(model.base_model, images)[0])
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()


def test_the_backbone_of_a_head_may_be_saved_by_itself(make_model, tmp_path):
    model, images = make_model("perceiver", RatsVariantForPreTraining), make_images()
    model.rats.save_pretrained(tmp_path)  # a RatsModel by class, whose code goes with it
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is RatsVariantModel and torch.equal(outputs_of(loaded, images)[0], outputs_of(model.rats, images)[0])


def test_rats_itself_still_names_its_remote_code_and_a_processor_its_own(make_config, make_model, tmp_path):
    make_model("all_heads").save_pretrained(tmp_path / "variant")
    RatsImageProcessor().save_pretrained(tmp_path / "variant")
    saved = json.loads((tmp_path / "variant" / "config.json").read_text())
    assert "auto_map" not in saved and type(AutoImageProcessor.from_pretrained(tmp_path / "variant")) is RatsImageProcessor
    RatsModel(make_config()).save_pretrained(tmp_path / "rats")
    assert json.loads((tmp_path / "rats" / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_rats.RatsModel"


def test_the_class_of_rats_warns_of_a_folder_of_a_variant_and_does_not_compute_it(make_model, tmp_path):
    model, images = make_model("all_heads", RatsVariantForPartSegmentation), make_images()
    model.save_pretrained(tmp_path)
    with CaptureLogger(logging.get_logger("transformers.configuration_utils")) as captured:
        loaded = RatsForPartSegmentation.from_pretrained(tmp_path)
    assert "model of type `rats_variant` to instantiate a model of type `rats`" in captured.out
    assert not torch.allclose(outputs_of(loaded, images)[0], outputs_of(model, images)[0])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, r"attention_variant='' must be one of register_keys, projected_communicate, all_heads, perceiver; choose"),
        ({"attention_variant": "rats"}, r"attention_variant='rats' must be one of"),
        (
            {"attention_variant": "perceiver", "communicate": False},
            r"partition_registers=True must be False with attention_variant='perceiver'.*set partition_registers=False",
        ),
        ({"attention_variant": "perceiver", "partition_registers": False}, r"communicate=True must be False"),
        ({"attention_variant": "projected_communicate", "communicate": False}, r"communicate=False must be True"),
        *(
            ({"attention_variant": variant, "partition_registers": False}, r"partition_registers=False must be True")
            for variant in ("register_keys", "projected_communicate", "all_heads")
        ),
    ],
    ids=str,
)
def test_what_is_no_variant_is_refused(fields, message):
    with pytest.raises(Exception, match=message):
        RatsVariantConfig(**fields)


def test_a_field_that_was_assigned_is_checked_and_a_folder_of_rats_is_refused(make_config, make_variant_config, tmp_path):
    config = make_variant_config("perceiver")
    config.partition_registers = True
    with pytest.raises(ValueError, match="partition_registers=True must be False"):
        RatsVariantModel(config)
    RatsModel(make_config()).save_pretrained(tmp_path)
    with pytest.raises(Exception, match="attention_variant='' must be one of"):
        RatsVariantModel.from_pretrained(tmp_path)


# Evaluation


def save(model, folder):
    model.save_pretrained(folder)
    RatsImageProcessor(size={"height": 24, "width": 40}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_parts_are_scored_as_those_of_rats(make_model, tmp_path, variant):
    model, images = make_model(variant, RatsVariantForPartSegmentation), make_images()
    folder = save(model, tmp_path)
    loaded, processor = load_rats(folder)
    assert type(loaded) is RatsVariantForPartSegmentation and type(processor) is RatsImageProcessor
    assert torch.equal(outputs_of(loaded, images)[0], outputs_of(model, images)[0])
    inner, _ = load_rats(folder, part_layer=1)
    assert inner.config.part_layer == 1 and not torch.equal(outputs_of(inner, images)[0], outputs_of(model, images)[0])
    untrained = untrained_like(loaded, seed=0)
    assert type(untrained.rats.encoder.layer[0].attention) is VARIANTS[variant]
    save(make_model(variant, RatsVariantForPreTraining), tmp_path / "pretrained")  # any checkpoint gives its parts
    assert load_rats(str(tmp_path / "pretrained"))[0].config.attention_variant == variant


def test_a_record_of_scores_tells_the_variant(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save(make_model("register_keys", RatsVariantForPartSegmentation), tmp_path / "model")
    write_dataset(tmp_path / "data", 2, 24, seed=0, split="validation", num_processes=1, quiet=True)
    arguments = ["--model", folder, "--dataset", str(tmp_path / "data"), "--quiet", "--baselines", "registers:model"]
    record = part_segmentation.main([*arguments, "--output", str(tmp_path / "scores.json")])
    assert record["model_config"]["attention_variant"] == "register_keys" and 0 <= record["scores"]["model"]["m2o_miou"] <= 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_tokens_and_compress_maps_are_read_as_those_of_rats(make_model, tmp_path, variant):
    model, images = make_model(variant), make_images()
    backbone = load_backbone(save(model, tmp_path))
    class_token, registers, patches, grid = backbone.tokens(images)
    assert class_token is None and torch.equal(torch.cat([registers, patches], dim=1), outputs_of(model, images)[0])
    assert backbone.num_registers == 8 and grid == (3, 5)
    maps = backbone.attention_maps(images)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(images, output_attentions=True).attentions[-1]  # (B, H, registers of a head, keys)
    assert maps.shape == (2, 4 * PER_HEAD[variant], 3, 5)
    for head in range(4):
        for register in range(PER_HEAD[variant]):
            of_patches = attention[:, head, register, OWN_KEYS[variant] :].reshape(2, 3, 5)
            assert torch.allclose(maps[:, head * PER_HEAD[variant] + register], of_patches, atol=1e-6)
    block = model.encoder.layer[-1]
    with torch.no_grad():
        tokens = block.layernorm_before(model(images, output_hidden_states=True).hidden_states[-2])
        logits = block.attention.compress_logits(tokens).unflatten(-1, grid)  # what claims are made of: one map a register
    expected = maps.log()  # the same but for the softmax's normaliser, one number a map
    expected = expected.unflatten(1, (4, 8)).mean(dim=1) if PER_HEAD[variant] == 8 else expected
    assert logits.shape == expected.shape == (2, 8, 3, 5)
    assert torch.allclose(*(one - one.mean(dim=(2, 3), keepdim=True) for one in (logits, expected)), atol=1e-5)


def test_configurations_of_rats_are_told_from_others(make_config, make_variant_config):
    assert is_rats(make_config()) and is_rats(make_variant_config("perceiver"))
    assert not is_rats(AutoConfig.for_model("vit"))
    assert {RATS_FOR_PARTS[config_class.model_type] for config_class in (RatsConfig, RatsVariantConfig)} == {
        RatsForPartSegmentation,
        RatsVariantForPartSegmentation,
    }
