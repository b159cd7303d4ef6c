"""The models: shapes, refusals, shortcuts that change nothing, initialisation, saving, heads, backbone."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageSegmentation,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
    ViTModel,
)

from modeling_rats import (
    RatsBackbone,
    RatsConfig,
    RatsForImageClassification,
    RatsForPartSegmentation,
    RatsForPreTraining,
    RatsImageProcessor,
    RatsImageProcessorPil,
    RatsModel,
    part_maps,
)
from modeling_rats.modeling_rats import RatsDropPath

MODELS = [RatsModel, RatsBackbone, RatsForPreTraining, RatsForImageClassification, RatsForPartSegmentation]


@pytest.fixture
def make_model(make_config):
    """A model in evaluation mode with weights that differ visibly from zero."""

    def make(model_class=RatsModel, attn_implementation="sdpa", **overrides):
        torch.manual_seed(0)
        config = make_config(initializer_range=0.2, **overrides)
        config._attn_implementation = attn_implementation
        return model_class(config).eval()

    return make


def random_images(height=32, width=32, batch=2, channels=3, seed=1):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def target_probabilities(batch=2, prototypes=16):
    return torch.randn(batch, prototypes, generator=torch.Generator().manual_seed(2)).softmax(dim=-1)


# Shapes and order


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("height, width, patches", [(32, 32, 16), (8, 8, 1), (8, 64, 8), (48, 40, 30), (96, 8, 12)])
def test_any_multiple_of_the_patch_size_will_do(make_model, height, width, patches, implementation):
    model = make_model(attn_implementation=implementation)
    outputs = model(random_images(height, width))
    assert outputs.last_hidden_state.shape == (2, 8 + patches, 32)
    assert outputs.pooler_output.shape == (2, 32)
    assert outputs.last_hidden_state.isfinite().all()


@pytest.mark.parametrize("patch_size", [(8, 4), [16, 8]])
def test_patches_may_be_rectangles(make_model, patch_size):
    outputs = make_model(RatsForPartSegmentation, patch_size=patch_size, image_size=(32, 64))(random_images(48, 32))
    assert outputs.similarities.shape == (2, 8, 48 // patch_size[0], 32 // patch_size[1])


def test_tokens_are_registers_then_patches_row_by_row(make_model):
    model, images = make_model(), random_images(32, 32)
    embeddings = model.embeddings
    tokens = model(images, output_hidden_states=True).hidden_states[0]
    for register in range(8):
        torch.testing.assert_close(tokens[1, register], embeddings.register_tokens[0, register])
    for row, column in [(0, 0), (0, 3), (2, 1), (3, 3)]:
        pixels = images[1, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        expected = (embeddings.patch_embeddings.weight * pixels).sum(dim=(1, 2, 3)) + embeddings.patch_embeddings.bias
        expected = expected + embeddings.position_embeddings[0, 4 * row + column]
        torch.testing.assert_close(tokens[1, 8 + 4 * row + column], expected, atol=1e-5, rtol=1e-5)


def test_pooled_output_is_the_mean_register_after_the_final_layer_norm(make_model):
    model = make_model()
    outputs = model(random_images(), output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    torch.testing.assert_close(model.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state[:, :8].mean(dim=1))


def test_a_block_is_pre_norm_with_two_residuals(make_model):
    model = make_model()
    states = model(random_images(), output_hidden_states=True).hidden_states
    layer = model.encoder.layer[1]
    middle = states[1] + layer.attention(layer.layernorm_before(states[1]))[0]
    expected = middle + layer.mlp.fc2(nn.functional.gelu(layer.mlp.fc1(layer.layernorm_after(middle))))
    torch.testing.assert_close(states[2], expected)


def test_attentions_are_the_compress_maps(make_model):
    outputs = make_model(attn_implementation="eager")(random_images(32, 48), output_attentions=True)
    assert [one.shape for one in outputs.attentions] == [(2, 4, 2, 24)] * 2


MAPS = {"attentions": (2, 4, 2, 24), "communicate_attentions": (2, 4, 2, 2), "broadcast_attentions": (2, 4, 24, 2)}


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("through", ["call", "config"])
def test_the_maps_of_each_step_can_be_asked_for(make_model, model_class, through):
    for asked in (["attentions"], ["communicate_attentions"], ["broadcast_attentions"], [*MAPS]):
        model = make_model(model_class, attn_implementation="eager")
        names = {f"output_{name}": True for name in asked}
        if through == "config":
            model.config.update(names)
        outputs = model(random_images(32, 48), **(names if through == "call" else {}))
        for name, shape in MAPS.items():
            if name in asked:
                assert [one.shape for one in outputs[name]] == [shape] * 2
                for one in outputs[name]:
                    torch.testing.assert_close(one.sum(dim=-1), torch.ones(shape[:-1]))
            else:
                assert outputs.get(name) is None


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("name", MAPS)
def test_maps_that_sdpa_does_not_compute_are_missed_aloud(make_model, model_class, name):
    model = make_model(model_class)
    with pytest.warns(UserWarning, match=rf"^output_{name} was asked for, but .*'sdpa' .*set_attn_implementation\(\"eager\"\)"):
        assert model(random_images(), **{f"output_{name}": True})[name] == ()
    model.set_attn_implementation("eager")
    assert len(model(random_images(), **{f"output_{name}": True})[name]) == 2


def test_the_maps_of_a_step_that_does_not_exist_are_missed_aloud(make_model):
    model = make_model(attn_implementation="eager", communicate=False)
    with pytest.warns(UserWarning, match="communicate=False in its configuration this model has no communicate step"):
        assert model(random_images(), output_communicate_attentions=True).communicate_attentions == ()


def test_hidden_states_can_be_chosen_by_index(make_model):
    model = make_model()
    every = model(random_images(), output_hidden_states=True).hidden_states
    for chosen in (1, -1, [0], [0, 2], [-2]):  # transformers takes a bare 0 for False
        some = model(random_images(), output_hidden_states=chosen).hidden_states
        wanted = {index % 3 for index in ([chosen] if isinstance(chosen, int) else chosen)}
        assert [state is not None for state in some] == [index in wanted for index in range(3)]
        assert all(torch.equal(some[index], every[index]) for index in wanted)


@pytest.mark.parametrize("model_class", MODELS)
def test_a_tuple_can_be_asked_for(make_model, model_class):
    model = make_model(model_class)
    torch.testing.assert_close(model(random_images(), return_dict=False)[0], model(random_images())[0])


def test_images_of_a_batch_do_not_influence_each_other(make_model):
    model, images = make_model(RatsForPartSegmentation), random_images(batch=3)
    torch.testing.assert_close(model(images).similarities[1:2], model(images[1:2]).similarities, atol=1e-5, rtol=1e-5)


def test_has_the_parameters_of_a_vit_and_the_registers():
    with torch.device("meta"):
        rats, vit = RatsModel(RatsConfig()), ViTModel(ViTConfig(), add_pooling_layer=False)
    count = lambda model: sum(parameter.numel() for parameter in model.parameters())  # noqa: E731
    class_token_and_position, mask_token = 2 * 768, 768
    assert count(rats) == count(vit) - class_token_and_position + mask_token + 192 * 768


# Refusals


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 3, 4, 32), "image height 4 px must be a positive multiple of the patch height 8 px"),
        ((2, 3, 32, 4), "image width 4 px"),
        ((2, 3, 33, 32), "image height 33 px .*ensure_multiple_of=8"),
        ((2, 3, 32, 39), "image width 39 px"),
        ((2, 3, 0, 32), "image height 0 px"),
        ((2, 1, 32, 32), r"shape \(2, 1, 32, 32\) must be \(batch, 3 channels"),
        ((2, 4, 32, 32), "3 channels"),
        ((3, 32, 32), r"shape \(3, 32, 32\)"),
        ((1, 3, 1, 1), "image height 1 px must be a positive multiple"),
        ((0, 3, 32, 32), "empty batch; give at least one image"),
    ],
    ids=str,
)
def test_images_that_do_not_fit_are_refused(make_model, model_class, shape, message):
    with pytest.raises(ValueError, match=message):
        make_model(model_class)(torch.zeros(shape))


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_pixels_that_are_not_normalised_are_refused(make_model, model_class, dtype):
    with pytest.raises(ValueError, match=rf"pixel_values of type {dtype} must be normalised floating-point values"):
        make_model(model_class)(torch.zeros(2, 3, 32, 32, dtype=dtype))


@pytest.mark.parametrize("shape", [(2, 15), (1, 16), (16,), (2, 4, 4)])
def test_a_mask_of_the_wrong_shape_is_refused(make_model, shape):
    with pytest.raises(
        ValueError, match=r"bool_masked_pos of shape .* must be \(batch, patches\), here \(2, 16\): 4 rows of 4"
    ):
        make_model()(random_images(), bool_masked_pos=torch.zeros(shape, dtype=torch.bool))


@pytest.mark.parametrize("model_class", MODELS)
def test_an_attention_mask_is_refused(make_model, model_class):
    with pytest.raises(ValueError, match="RATS takes no attention_mask: no patch is padding"):
        make_model(model_class)(random_images(), attention_mask=torch.ones(2, 16))
    make_model(model_class)(random_images(), attention_mask=None)


def test_a_mask_without_a_mask_token_is_refused(make_model):
    with pytest.raises(ValueError, match="no mask token; set use_mask_token=True"):
        make_model(use_mask_token=False)(random_images(), bool_masked_pos=torch.ones(2, 16))


def test_masked_patches_become_the_mask_token(make_model):
    model = make_model()
    model.embeddings.mask_token.data.fill_(7.0)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[1, 5] = True
    tokens, plain = model.embeddings(random_images(), masked), model.embeddings(random_images())
    torch.testing.assert_close(tokens[1, 8 + 5], model.embeddings.position_embeddings[0, 5] + 7.0)
    assert (tokens != plain).any(dim=-1).nonzero().tolist() == [[1, 13]]


# Only what is used is computed


@pytest.mark.parametrize("overrides", [{}, {"partition_registers": False}, {"drop_path_rate": 0.5}], ids=str)
def test_pooled_only_changes_neither_output_nor_gradients(make_model, overrides):
    model = make_model(**overrides).train()
    outputs, gradients = [], []
    for pooled_only in (True, False):
        torch.manual_seed(3)
        model.zero_grad()
        output = model(random_images(), pooled_only=pooled_only)
        (output.pooler_output * torch.linspace(-1, 1, 32)).sum().backward()
        outputs.append(output)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert outputs[0].last_hidden_state.shape == (2, 8, 32)
    torch.testing.assert_close(outputs[0].last_hidden_state, outputs[1].last_hidden_state[:, :8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs[0].pooler_output, outputs[1].pooler_output, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients[1].items():
        if gradient is None:
            assert name == "embeddings.mask_token"
        else:
            torch.testing.assert_close(gradients[0][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
@pytest.mark.parametrize("through", ["call", "config", "config, with None in the call"])
def test_pooled_only_is_ignored_when_more_is_wanted(make_model, name, through):
    model = make_model(attn_implementation="eager")
    kwargs = {name: True} if through == "call" else {}
    if through != "call":
        setattr(model.config, name, True)
    if through == "config, with None in the call":
        kwargs = {name: None}
    outputs = model(random_images(), pooled_only=True, **kwargs)
    expected = make_model(attn_implementation="eager")(random_images(), **{name: True})
    recorded = getattr(outputs, name.removeprefix("output_"))
    if kwargs == {name: None}:  # the library takes None for no
        assert recorded is None
        assert outputs.last_hidden_state.shape[1] == 8
        return
    assert outputs.last_hidden_state.shape == (2, 24, 32)
    for actual, wanted in zip(recorded, expected[name.removeprefix("output_")], strict=True):
        torch.testing.assert_close(actual, wanted)


def test_pretraining_head_can_show_hidden_states(make_model):
    model = make_model(RatsForPreTraining)
    states = model(random_images(), output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(2, 24, 32)] * 3
    assert model(random_images()).hidden_states is None


# Positions


def test_positions_at_the_native_size_are_the_learned_ones(make_model):
    embeddings = make_model().embeddings
    assert embeddings._positions((4, 4)) is embeddings.position_embeddings


def test_positions_of_other_grids_are_interpolated_bicubically(make_model):
    embeddings = make_model(image_size=(32, 48)).embeddings
    positions = embeddings._positions((8, 3))
    image = embeddings.position_embeddings.reshape(1, 4, 6, 32).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(image, size=(8, 3), mode="bicubic")
    for row in range(8):
        for column in range(3):
            torch.testing.assert_close(positions[0, 3 * row + column], expected[0, :, row, column])


def test_interpolated_positions_get_gradients(make_model):
    model = make_model()
    model(random_images(48, 16)).pooler_output.sum().backward()
    assert model.embeddings.position_embeddings.grad.abs().sum() > 0


# Drop path


def test_drop_path_only_acts_in_training(make_model):
    model = make_model(drop_path_rate=0.5)
    torch.testing.assert_close(model(random_images())[0], model(random_images())[0], atol=0, rtol=0)
    torch.testing.assert_close(model(random_images())[0], make_model()(random_images())[0], atol=0, rtol=0)
    model.train()
    assert not torch.equal(model(random_images(batch=8))[0], model(random_images(batch=8))[0])


def test_drop_path_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = RatsDropPath(0.3).train()
    kept = drop_path(torch.ones(20_000, 2, 3))
    assert {round(value, 5) for value in kept.unique().tolist()} == {0.0, round(1 / 0.7, 5)}
    assert (kept == kept[:, :1, :1]).all()  # all tokens of a sample share its fate
    assert kept.mean() == pytest.approx(1.0, abs=0.02)


def test_drop_path_grows_linearly_with_depth(make_model):
    model = make_model(num_hidden_layers=5, drop_path_rate=0.4)
    assert [layer.drop_path.rate for layer in model.encoder.layer] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


# Initialisation


@pytest.mark.parametrize("model_class", MODELS)
def test_every_parameter_is_initialised(make_config, model_class):
    model = model_class(make_config(num_labels=3, hidden_size=64, initializer_range=0.02))
    for module in model.modules():  # as `from_pretrained` leaves what a checkpoint lacks
        module._is_hf_initialized = False
        for parameter in module.parameters(recurse=False):
            parameter.data.fill_(torch.nan)
            parameter._is_hf_initialized = False
    model.init_weights()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "mask_token")):
            assert parameter.eq(0).all(), name
        elif "layernorm" in name:
            assert parameter.eq(1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.35), name
            assert abs(parameter.mean().item()) < 0.01, name


@pytest.mark.parametrize("model_class", MODELS)
def test_training_reaches_every_parameter(make_model, model_class):
    model = make_model(model_class, num_labels=3).train()
    outputs = model(random_images())
    read = {RatsModel: "pooler_output", RatsBackbone: "feature_maps"}.get(model_class, "logits")
    (outputs[read] if read != "feature_maps" else outputs[read][-1]).sin().sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert {name.split(".")[-1] for name in without} <= {"mask_token"}


class WithMore(RatsModel):
    """What a user may add to a model."""

    def __init__(self, config):
        super().__init__(config)
        self.more = nn.ModuleList(
            [
                nn.Embedding(7, 8),
                nn.BatchNorm2d(4),
                nn.ConvTranspose2d(3, 4, 2),
                nn.GroupNorm(2, 4),
                nn.MultiheadAttention(8, 2),
            ]
        )
        self.post_init()


def test_modules_that_a_subclass_adds_are_initialised(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    loaded = WithMore.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert tensor.isfinite().all() and tensor.abs().max() < 10, name


# Saving and loading


def assert_same_weights(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("num_labels", [None, 2, 3])
def test_a_saved_model_comes_back(make_model, tmp_path, model_class, num_labels):
    model = make_model(model_class, **({} if num_labels is None else {"num_labels": num_labels}))
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path)
    assert_same_weights(model, loaded)
    torch.testing.assert_close(loaded(random_images())[0], model(random_images())[0])
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".py") == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "rats"


@pytest.mark.parametrize("head_class", [RatsForPreTraining, RatsForPartSegmentation])
def test_the_base_model_loads_from_a_head_and_a_head_from_the_base(make_model, tmp_path, head_class):
    head = make_model(head_class, num_labels=3)
    head.save_pretrained(tmp_path / "head")
    base, info = RatsModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert_same_weights(base, head.rats)
    assert not info["missing_keys"]
    base.save_pretrained(tmp_path / "base")
    loaded, info = head_class.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert_same_weights(loaded.rats, base)
    assert info["missing_keys"] and not any(key.startswith("rats.") for key in info["missing_keys"])
    for name, parameter in loaded.named_parameters():
        if name in info["missing_keys"]:
            assert parameter.isfinite().all() and (name.endswith("bias") or parameter.std() > 0), name


def test_part_segmentation_reads_a_pretraining_folder_whole(make_model, tmp_path):
    pretrained = make_model(RatsForPreTraining)
    pretrained.save_pretrained(tmp_path)
    parts, info = RatsForPartSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert_same_weights(parts.rats, pretrained.rats)
    assert not info["missing_keys"] and parts.part_classifier is None


def test_auto_classes_find_the_models(make_model, tmp_path):
    make_model(RatsForPreTraining).save_pretrained(tmp_path)
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is RatsConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is RatsModel
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is RatsForPreTraining
    assert type(AutoModelForSemanticSegmentation.from_pretrained(tmp_path)) is RatsForPartSegmentation
    assert type(AutoModelForImageSegmentation.from_pretrained(tmp_path)) is RatsForPartSegmentation
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is RatsForImageClassification
    assert type(AutoBackbone.from_config(AutoConfig.from_pretrained(tmp_path))) is RatsBackbone
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is RatsImageProcessor
    assert type(AutoImageProcessor.from_pretrained(tmp_path, backend="pil")) is RatsImageProcessorPil


def test_similarities_keep_their_precision_under_half_precision_weights(make_model):
    model = make_model(RatsForPartSegmentation)
    halved = copy.deepcopy(model).to(torch.bfloat16)
    images = random_images(48, 32)  # of a grid that is not the learned one
    assert halved.rats(images).last_hidden_state.dtype == torch.bfloat16
    assert halved(images).similarities.dtype == torch.float32
    torch.testing.assert_close(halved(images).similarities, model(images).similarities, atol=0.1, rtol=0)


# Pretraining head


def test_pretraining_loss_is_the_cross_entropy_with_the_targets(make_model):
    model, targets = make_model(RatsForPreTraining), target_probabilities()
    outputs = model(random_images(), labels=targets)
    expected = -sum((targets[image] * outputs.logits[image].log_softmax(dim=-1)).sum() for image in range(2)) / 2
    torch.testing.assert_close(outputs.loss, expected)
    assert model(random_images()).loss is None


def test_pretraining_logits_are_cosines_with_the_prototypes(make_model):
    model = make_model(RatsForPreTraining)
    logits = model(random_images()).logits
    features = model.head.layers(model.rats(random_images()).pooler_output)
    for image in range(2):
        for prototype in (0, 7, 15):
            cosine = nn.functional.cosine_similarity(features[image], model.head.prototypes.weight[prototype], dim=0)
            torch.testing.assert_close(logits[image, prototype], cosine, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "labels",
    [torch.zeros(2, 15), torch.zeros(3, 16), torch.zeros(2, 16, dtype=torch.long), torch.zeros(2)],
    ids=lambda labels: f"{tuple(labels.shape)} {labels.dtype}",
)
def test_pretraining_refuses_labels_that_are_no_probabilities(make_model, labels):
    with pytest.raises(ValueError, match=r"must be target probabilities over the prototypes, of shape \(2, 16\)"):
        make_model(RatsForPreTraining)(random_images(), labels=labels)


def test_pretraining_head_runs_in_float32_under_autocast(make_model):
    model, seen = make_model(RatsForPreTraining), []
    for module in model.head.modules():
        module.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = model.rats(random_images(), pooled_only=True).pooler_output
        logits = model(random_images(), labels=target_probabilities()).logits
    assert set(seen) == {torch.float32}
    torch.testing.assert_close(logits, model.head(pooled.float()))


# Part segmentation head


@pytest.mark.parametrize("part_layer, state", [(-1, 2), (2, 2), (-2, 1), (1, 1), (0, 0), (-3, 0)])
def test_part_layer_chooses_the_tokens(make_model, part_layer, state):
    model = make_model(RatsForPartSegmentation, part_layer=part_layer)
    outputs = model(random_images(32, 48))
    assert outputs.hidden_states is None
    tokens = model.rats.layernorm(model(random_images(32, 48), output_hidden_states=True).hidden_states[state])
    for register, row, column in [(0, 0, 0), (5, 3, 2), (7, 1, 5)]:
        patch = 8 + 6 * row + column
        cosine = nn.functional.cosine_similarity(tokens[1, register], tokens[1, patch], dim=0)
        torch.testing.assert_close(outputs.similarities[1, register, row, column], cosine, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part_layer, state", [(-1, 2), (-2, 1), (1, 1)])
@pytest.mark.parametrize("partition_registers", [True, False])
def test_claimed_patches_are_those_that_a_registers_query_and_its_attention_choose(
    make_model, part_layer, state, partition_registers, monkeypatch
):
    monkeypatch.setattr(part_maps, "CLAIM_STEPS", 1)
    settings = {"part_layer": part_layer, "partition_registers": partition_registers}
    model = make_model(RatsForPartSegmentation, part_similarity="claimed_patches", **settings)
    outputs = model(random_images(32, 48))
    assert outputs.hidden_states is None and outputs.attentions is None
    rats = model.rats
    recorded = make_model(**settings)(random_images(32, 48), output_hidden_states=True)
    block, heads = rats.encoder.layer[state - 1], model.config.num_attention_heads
    normed = block.layernorm_before(recorded.hidden_states[state - 1])  # (B, N + L, D)
    queries, keys = block.attention.q_proj(normed[:, :8]), block.attention.k_proj(normed[:, 8:])
    queries, keys = (one.unflatten(2, (heads, -1)).transpose(1, 2) for one in (queries, keys))
    logits = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5  # (B, H, N, L)
    own_head = torch.arange(8) // (8 // heads)
    logits = logits[:, own_head, torch.arange(8)] if partition_registers else logits.mean(dim=1)  # (B, N, L)
    maps = (logits + logits.log_softmax(dim=-1)) / 2
    patches = nn.functional.normalize(rats.layernorm(recorded.hidden_states[state])[:, 8:], dim=-1)
    claimed_by_none = 0
    for image in range(2):
        owner = maps[image].argmax(dim=0)
        for register in range(8):
            if not (owner == register).any():
                expected = -torch.ones(24)
                claimed_by_none += 1
            else:
                mean = patches[image][owner == register].mean(dim=0)
                expected = nn.functional.cosine_similarity(patches[image], mean[None], dim=1)
            torch.testing.assert_close(outputs.similarities[image, register].flatten(), expected, atol=1e-5, rtol=1e-5)
    assert claimed_by_none < 8


def test_without_labels_the_logits_are_the_similarities(make_model):
    model = make_model(RatsForPartSegmentation)
    outputs = model(random_images())
    assert model.part_classifier is None and model.config.id2label[3] == "register 3"
    assert outputs.logits.shape == (2, 8, 4, 4) and torch.equal(outputs.logits, outputs.similarities)
    assert outputs.similarities.abs().max() <= 1 + 1e-5


def test_own_labels_add_a_linear_layer_over_the_similarities(make_model):
    model = make_model(RatsForPartSegmentation, num_labels=3)
    outputs = model(random_images(32, 48))
    assert outputs.logits.shape == (2, 3, 4, 6) and outputs.similarities.shape == (2, 8, 4, 6)
    expected = model.part_classifier(outputs.similarities[1, :, 2, 5])
    torch.testing.assert_close(outputs.logits[1, :, 2, 5], expected)


def test_part_loss_is_the_pixels_cross_entropy_and_trains(make_model):
    model = make_model(RatsForPartSegmentation, num_labels=3)
    labels = torch.randint(0, 3, (2, 32, 48), generator=torch.Generator().manual_seed(0))
    labels[:, :4] = 255
    outputs = model(random_images(32, 48), labels=labels)
    logits = nn.functional.interpolate(outputs.logits, size=(32, 48), mode="bilinear")
    log_probabilities = logits.log_softmax(dim=1)
    losses = [-log_probabilities[image, labels[image, y, x], y, x]
              for image in range(2) for y in range(4, 32) for x in range(48)]  # fmt: skip
    torch.testing.assert_close(outputs.loss, torch.stack(losses).mean())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outputs.loss.backward()
    assert model.part_classifier.weight.grad.any() and model.rats.embeddings.register_tokens.grad.any()
    optimizer.step()
    assert model(random_images(32, 48), labels=labels).loss < outputs.loss


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (32, 32)])
def test_labels_of_the_wrong_shape_are_refused(make_model, shape):
    with pytest.raises(ValueError, match=r"must be \(2, height, width\)"):
        make_model(RatsForPartSegmentation)(random_images(), labels=torch.zeros(shape, dtype=torch.long))


def test_registers_know_their_heads(make_model):
    outputs = make_model(RatsForPartSegmentation)(random_images())
    assert outputs.register_heads.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2
    assert make_model(RatsForPartSegmentation, partition_registers=False)(random_images()).register_heads is None


PARTS = [{"part_layer": -1}, {"part_layer": 1}, {"part_layer": 0}]
PARTS += [{"part_layer": -1, "part_similarity": "claimed_patches"}, {"part_layer": 1, "part_similarity": "claimed_patches"}]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("asked", [None, False, True, 1, [0, 2], -2])
def test_parts_leave_the_hidden_states_to_the_caller(make_model, parts, asked):
    model = make_model(RatsForPartSegmentation, **parts)
    outputs = model(random_images(), output_hidden_states=asked)
    torch.testing.assert_close(outputs.similarities, model(random_images()).similarities)
    if asked is None or asked is False:
        assert outputs.hidden_states is None
    else:
        wanted = range(3) if asked is True else ([asked] if isinstance(asked, int) else asked)
        every = model.rats(random_images(), output_hidden_states=True).hidden_states
        for index in wanted:
            assert torch.equal(outputs.hidden_states[index], every[index])


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_parts_alone_record_nothing(make_model, parts):
    """Recording puts hooks on the model, which then can be neither pickled nor, in a first call, compiled."""
    model = make_model(RatsForPartSegmentation, **parts)
    compiled = torch.compile(model, fullgraph=True, backend="eager")(random_images())
    torch.testing.assert_close(compiled.similarities, model(random_images()).similarities)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(random_images()).similarities, compiled.similarities)


def test_pixels_with_the_ignored_label_do_not_count(make_model):
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    for ignored in (255, 7):
        model = make_model(RatsForPartSegmentation, num_labels=3, semantic_loss_ignore_index=ignored)
        logits = nn.functional.interpolate(model(random_images()).logits, size=(32, 32), mode="bilinear")
        partly = labels.clone()
        partly[:, :20] = ignored
        expected = nn.functional.cross_entropy(logits[:, :, 20:], labels[:, 20:])
        torch.testing.assert_close(model(random_images(), labels=partly).loss, expected)


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_blocks_after_the_part_layer_are_neither_run_nor_trained(make_model, monkeypatch, parts):
    model = make_model(RatsForPartSegmentation, **parts, num_labels=3).train()
    layers, used = model.rats.encoder.layer, parts["part_layer"] % 3
    run = []
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: run.append(index))
    model(random_images(), labels=torch.zeros(2, 32, 32, dtype=torch.long)).loss.backward()
    assert run == list(range(used))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(parameter.requires_grad == (index < used) for index in range(2) for parameter in layers[index].parameters())


def test_tokens_before_the_final_layernorm(make_model):
    model = make_model()
    before, after = model(random_images(), apply_layernorm=False), model(random_images())
    torch.testing.assert_close(model.layernorm(before.last_hidden_state), after.last_hidden_state)
    torch.testing.assert_close(before.pooler_output, before.last_hidden_state[:, : model.config.num_registers].mean(dim=1))


def test_stopping_after_some_blocks(make_model):
    model = make_model()
    states = model(random_images(), output_hidden_states=True).hidden_states
    for num_layers in (0, 1, 2):
        outputs = model(random_images(), num_layers=num_layers)
        torch.testing.assert_close(outputs.last_hidden_state, model.layernorm(states[num_layers]))
        pooled = model(random_images(), num_layers=num_layers, pooled_only=True)
        torch.testing.assert_close(pooled.pooler_output, outputs.pooler_output)
    with pytest.raises(ValueError, match="num_layers=3 must be from 0 to the model's 2 blocks"):
        model(random_images(), num_layers=3)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.full((2, 32, 32), 3), r"from 0 to 2, or 255 \(semantic_loss_ignore_index\).*but hold \[3\]"),
        (torch.full((2, 32, 32), -100), r"but hold \[-100\]"),
        (torch.zeros(2, 32, 32), "labels of type torch.float32 must be integers"),
    ],
    ids=["too large", "negative", "floats"],
)
def test_labels_of_the_wrong_value_are_refused(make_model, labels, message):
    with pytest.raises(ValueError, match=message):
        make_model(RatsForPartSegmentation, num_labels=3)(random_images(), labels=labels)


def test_one_label_is_nothing_to_learn(make_model):
    with pytest.raises(ValueError, match="a cross-entropy over one label is always 0; use num_labels=2"):
        make_model(RatsForPartSegmentation, num_labels=1)(random_images(), labels=torch.zeros(2, 32, 32, dtype=torch.long))


def test_a_batch_without_a_pixel_that_counts_has_no_loss(make_model):
    loss = make_model(RatsForPartSegmentation, num_labels=3)(random_images(), labels=torch.full((2, 32, 32), 255)).loss
    assert loss == 0


@pytest.mark.parametrize("first, second", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_the_label_layer_may_have_a_type_of_its_own(make_model, first, second):
    model = make_model(RatsForPartSegmentation, num_labels=3)
    model.rats.to(first)
    model.part_classifier.to(second)
    assert model(random_images()).logits.isfinite().all()


# Image classification


def test_classifier_reads_the_mean_register(make_model):
    model = make_model(RatsForImageClassification, num_labels=3)
    pooled = model.rats(random_images()).last_hidden_state[:, :8].mean(dim=1)
    torch.testing.assert_close(model(random_images()).logits, pooled @ model.classifier.weight.T + model.classifier.bias)


def test_classification_losses_follow_the_problem_type(make_model):
    model, classes = make_model(RatsForImageClassification, num_labels=3), torch.tensor([2, 0])
    outputs = model(random_images(), labels=classes)
    torch.testing.assert_close(outputs.loss, nn.functional.cross_entropy(outputs.logits, classes))
    several = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    model = make_model(RatsForImageClassification, num_labels=3)  # the type of problem is found once
    expected = nn.functional.binary_cross_entropy_with_logits(outputs.logits, several)
    torch.testing.assert_close(model(random_images(), labels=several).loss, expected)


def test_no_labels_give_the_pooled_output(make_model):
    model = make_model(RatsForImageClassification, num_labels=0)
    torch.testing.assert_close(model(random_images()).logits, model.rats(random_images()).pooler_output)


def test_a_classifier_without_labels_of_its_own_says_so(make_config, monkeypatch):
    said = []
    monkeypatch.setattr("modeling_rats.modeling_rats.logger.warning_once", said.append)
    RatsForImageClassification(make_config(num_labels=3))
    assert not said
    RatsForImageClassification(make_config())
    assert "gets one output for each of the 8 registers" in said[0] and "give num_labels=... or id2label" in said[0]


# Backbone


@pytest.mark.parametrize("apply_layernorm", [True, False])
@pytest.mark.parametrize("stages", [[0, 1, 2], [1], [0, -1]])
def test_feature_maps_are_the_patch_tokens_of_the_stages(make_model, stages, apply_layernorm):
    model = make_model(RatsBackbone, out_indices=stages, apply_layernorm=apply_layernorm, return_registers=True)
    outputs = model(random_images(32, 48))
    states = model.rats(random_images(32, 48), output_hidden_states=True).hidden_states
    assert len(outputs.feature_maps) == len(outputs.registers) == len(stages)
    assert outputs.hidden_states is None
    for stage, feature_map, registers in zip(stages, outputs.feature_maps, outputs.registers, strict=True):
        tokens = model.rats.layernorm(states[stage]) if apply_layernorm else states[stage]
        assert feature_map.shape == (2, 32, 4, 6) and feature_map.is_contiguous()
        torch.testing.assert_close(registers, tokens[:, :8])
        for row, column in [(0, 0), (1, 5), (3, 2)]:
            torch.testing.assert_close(feature_map[1, :, row, column], tokens[1, 8 + 6 * row + column])


def test_feature_maps_may_stay_sequences_and_registers_may_be_left_out(make_model):
    as_maps, as_sequences = make_model(RatsBackbone), make_model(RatsBackbone, reshape_hidden_states=False)
    outputs = as_sequences(random_images(32, 48))
    assert outputs.registers is None
    torch.testing.assert_close(
        outputs.feature_maps[0].transpose(1, 2).unflatten(-1, (4, 6)), as_maps(random_images(32, 48)).feature_maps[0]
    )


def test_backbone_tells_its_channels(make_model):
    model = make_model(RatsBackbone, out_features=["stem", "stage2"])
    assert model.channels == [32, 32] and model.num_features == [32] * 3
    assert model.out_feature_channels == {"stem": 32, "stage1": 32, "stage2": 32}


def test_a_framework_trains_on_the_backbone(make_config):
    """UperNet takes any AutoBackbone configuration; the gradient reaches registers and patches."""
    torch.manual_seed(0)
    backbone = make_config(out_indices=[0, 1, 2], image_size=64)
    settings = UperNetConfig(
        backbone_config=backbone, hidden_size=16, num_labels=4, use_auxiliary_head=False, pool_scales=[1, 2]
    )
    model = UperNetForSemanticSegmentation(settings)
    assert type(model.backbone) is RatsBackbone
    outputs = model(torch.randn(2, 3, 64, 64), labels=torch.zeros(2, 64, 64, dtype=torch.long))
    assert outputs.logits.shape == (2, 4, 64, 64)
    outputs.loss.backward()
    embeddings = model.backbone.rats.embeddings
    assert embeddings.register_tokens.grad.abs().sum() > 0 and embeddings.patch_embeddings.weight.grad.abs().sum() > 0
