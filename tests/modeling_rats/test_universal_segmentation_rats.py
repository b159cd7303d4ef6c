"""Universal segmentation: Mask2Former's decoder and losses, queries from registers, labels, backbones, loading, pipelines."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    ResNetConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    pipeline,
)
from transformers.models.mask2former.modeling_mask2former import Mask2FormerTransformerModule

from modeling_rats import (
    RatsBackbone,
    RatsForPreTraining,
    RatsForUniversalSegmentation,
    RatsModel,
    RatsUniversalSegmentationConfig,
)
from modeling_rats.universal_segmentation_rats import RatsFeaturePyramid

HEADS = ["mask2former", "encoder_only"]
BACKBONES = ["rats", "vit", "dinov2", "dinov2_with_registers", "dinov3_vit"]
WITH_REGISTERS = {"rats": 8, "dinov2_with_registers": 4, "dinov3_vit": 4}
SPECIAL_TOKENS = {"rats": 8, "vit": 1, "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5}  # before the patches
SIZES = {
    "feature_size": 32,
    "mask_feature_size": 16,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 16,
    "dim_feedforward": 24,
    "encoder_layers": 1,
    "decoder_layers": 4,  # three, one for each scale, after the initial prediction
    "num_attention_heads": 4,
    "train_num_points": 64,
    "num_labels": 3,
}
IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
MASKS = [torch.rand(segments, 32, 48, generator=torch.Generator().manual_seed(segments)) > 0.5 for segments in (2, 3)]
LABELS = [torch.tensor([0, 2]), torch.tensor([1, 1, 0])]
LABELLED = {"mask_labels": MASKS, "class_labels": LABELS}


@pytest.fixture
def make_backbone_config(make_config):
    """Tiny configurations of all kinds: 2 blocks of width 32, 4 x 4 patches of 8 px."""

    def make(backbone="rats", **overrides):
        if backbone == "rats":
            return make_config(**({"initializer_range": 0.2} | overrides))
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
        config_class, own = {
            "vit": (ViTConfig, {"intermediate_size": 64}),
            "dinov2": (Dinov2Config, {}),
            "dinov2_with_registers": (Dinov2WithRegistersConfig, {"num_register_tokens": 4}),
            "dinov3_vit": (DINOv3ViTConfig, {"intermediate_size": 64, "num_register_tokens": 4}),
        }[backbone]
        return config_class(**(sizes | {"initializer_range": 0.2} | own | overrides))

    return make


@pytest.fixture
def make_model(make_backbone_config):
    """A model in evaluation mode; fields of its backbone are given as `of_backbone`."""

    def make(backbone="rats", of_backbone=(), **fields):
        torch.manual_seed(0)
        if backbone not in WITH_REGISTERS:
            fields = {"query_source": "learned", "num_queries": 6} | fields
        config = make_backbone_config(backbone, **dict(of_backbone))
        return RatsForUniversalSegmentation(RatsUniversalSegmentationConfig(backbone_config=config, **(SIZES | fields))).eval()

    return make


def loss_of(model, images=IMAGES, **labelled):
    torch.manual_seed(3)  # it is computed at random points
    return model(images, **(LABELLED | labelled)).loss


def gradients(model, **labelled):
    model.zero_grad()
    loss_of(model, **labelled).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def queries_entering(model, images):
    """The content part of the queries as the transformer decoder gets it, (Q, B, C)."""
    seen = []
    decoder = model.model.transformer_module.decoder
    handle = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True)
    model(images)
    handle.remove()
    return seen[0]


# Mask2Former's parts


def decoder_inputs(config, batch=2):
    generator = torch.Generator().manual_seed(2)
    levels = [torch.randn(batch, config.feature_size, *size, generator=generator) for size in [(2, 3), (4, 6), (8, 12)]]
    return levels, torch.randn(batch, config.mask_feature_size, 16, 24, generator=generator)


@pytest.mark.parametrize("fields", [{}, {"hidden_dim": 64}, {"pre_norm": True}, {"enforce_input_projection": True}], ids=str)
def test_the_decoder_without_offsets_is_mask2formers(make_model, fields):
    model = make_model(**fields)
    module, inputs = model.model.transformer_module, decoder_inputs(model.config)
    asked = {"output_hidden_states": True, "output_attentions": True}
    expected = Mask2FormerTransformerModule.forward(module, *inputs, **asked)
    outputs = module(*inputs, **asked)
    assert outputs.keys() == expected.keys() and len(outputs.masks_queries_logits) == 4
    for name, value in expected.items():
        pairs = zip(outputs[name], value, strict=True) if isinstance(value, tuple) else [(outputs[name], value)]
        assert all(torch.equal(first, second) for first, second in pairs), name


def test_offsets_shift_the_first_queries_and_no_others(make_model):
    model = make_model(num_queries=11)
    module, inputs = model.model.transformer_module, decoder_inputs(model.config)
    offsets = torch.randn(2, 8, 32)
    without = module(*inputs)
    entering = module(*inputs, offsets).intermediate_hidden_states[0]  # after the LayerNorm, before any layer
    for image in range(2):
        for query in range(11):
            content = module.queries_features.weight[query] + (offsets[image, query] if query < 8 else 0)
            torch.testing.assert_close(entering[query, image], module.decoder.layernorm(content), atol=1e-6, rtol=1e-5)
    assert torch.equal(entering[8:], without.intermediate_hidden_states[0][8:])
    assert not torch.allclose(entering[:8], without.intermediate_hidden_states[0][:8], atol=0.1)


def mask2former(**fields):
    fields = SIZES | fields
    widths = [fields["feature_size"]] * 4  # as our pyramid's
    convolutions = ResNetConfig(
        embedding_size=8, hidden_sizes=widths, depths=[1] * 4, layer_type="basic", out_indices=[1, 2, 3, 4]
    )
    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=convolutions, **fields))


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_the_losses_are_mask2formers(make_model, head, auxiliary):
    weights = {"class_weight": 1.5, "mask_weight": 4.0, "dice_weight": 3.0, "no_object_weight": 0.2}
    model = make_model(segmentation_head=head, use_auxiliary_loss=auxiliary, **weights).train()
    torch.manual_seed(5)
    outputs = model(IMAGES, **LABELLED, output_auxiliary_logits=True)
    torch.manual_seed(5)
    theirs = mask2former(**weights)
    torch.manual_seed(5)
    losses = theirs.get_loss_dict(
        outputs.masks_queries_logits,
        outputs.class_queries_logits,
        mask_labels=[masks.float() for masks in MASKS],
        class_labels=LABELS,
        auxiliary_predictions=outputs.auxiliary_logits if auxiliary else None,
    )
    layers = len(outputs.auxiliary_logits) + 1 if auxiliary else 1
    assert layers == {"mask2former": 4, "encoder_only": 2}[head] or not auxiliary
    assert len(losses) == 3 * layers
    assert torch.equal(outputs.loss, theirs.get_loss(losses)) and outputs.loss.item() > 1


@pytest.mark.parametrize("fields", [{}, {"enforce_input_projection": True, "hidden_dim": 64}], ids=str)
def test_mask2formers_parts_start_as_in_mask2former(make_model, fields):
    """transformers takes models of other packages for custom code, whose `_init_weights` it does not call for every module."""
    sizes = {"feature_size": 64, "encoder_feedforward_dim": 64, "dim_feedforward": 64} | fields
    model = make_model(**sizes)
    ours = model.model.state_dict()
    theirs = mask2former(**sizes).model.state_dict()
    compared = 0
    for name, value in theirs.items():
        name = name.replace("pixel_level_module.decoder.", "pixel_decoder.")
        if name.startswith("pixel_level_module.encoder.") or ".queries_" in name:  # another backbone; another number
            continue
        compared += 1
        assert ours[name].shape == value.shape, name
        if value.unique().numel() < min(20, value.numel()):  # a constant, or a pattern such as that of the sampling points
            assert torch.equal(ours[name], value), name
        else:
            assert 0.7 < (ours[name].std() / value.std()).item() < 1.4, name
    assert compared > 60
    assert 0.8 < model.model.transformer_module.queries_features.weight.std() < 1.2
    fan_in_and_out = sum(model.model.query_projection.weight.shape)
    spread = (2 / fan_in_and_out) ** 0.5  # of Xavier
    assert 0.8 < model.model.query_projection.weight.std() / spread < 1.2


@pytest.mark.parametrize("width", [16, 128])
def test_eomts_parts_start_as_in_eomt(make_model, width):
    model = make_model(segmentation_head="encoder_only", of_backbone={"hidden_size": width}).model
    layers = [*model.mask_head.modules(), *model.upscale_block.modules()]
    layers = [layer for layer in layers if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
    assert len(layers) == 3 + 2 * 2
    for layer in layers:
        fan_in = layer.weight[0].numel()
        assert 0.7 < layer.weight.std() * (3 * fan_in) ** 0.5 < 1.4  # uniform up to 1 / sqrt(fan in)


# Queries


@pytest.mark.parametrize("backbone", WITH_REGISTERS)
def test_queries_from_registers_differ_between_images_and_learned_ones_do_not(make_model, backbone):
    from_registers = make_model(backbone)
    contents = queries_entering(from_registers, IMAGES)
    assert contents.shape == (WITH_REGISTERS[backbone], 2, 32)
    assert (contents[:, 0] - contents[:, 1]).abs().amax(dim=-1).min() > 1e-3  # each query
    tokens = from_registers.model.encoder(IMAGES).last_hidden_state
    first = 0 if backbone == "rats" else 1  # after the class token
    registers = tokens[:, first : first + WITH_REGISTERS[backbone]]
    projected = from_registers.model.query_projection(registers).transpose(0, 1)
    learned = from_registers.model.transformer_module.queries_features.weight[:, None]
    torch.testing.assert_close(contents, learned + projected)

    contents = queries_entering(make_model(backbone, query_source="learned", num_queries=5), IMAGES)
    assert contents.shape == (5, 2, 32) and torch.equal(contents[:, 0], contents[:, 1])


def test_gradients_reach_the_registers_of_the_backbone_through_the_queries(make_model):
    model = make_model()
    tokens = model.model.encoder.embeddings.register_tokens
    (gradient,) = torch.autograd.grad(queries_entering(model, IMAGES).sin().sum(), tokens)
    assert (gradient.abs().amax(dim=-1) > 0).all()
    model = make_model(query_source="learned")
    tokens = model.model.encoder.embeddings.register_tokens
    assert torch.autograd.grad(queries_entering(model, IMAGES).sin().sum(), tokens, allow_unused=True) == (None,)


# Backbones


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("height, width, patch", [(32, 32, 8), (24, 40, 8), (8, 56, 8), (64, 48, 16)])
def test_images_of_any_size_and_patches_in_their_places(make_model, backbone, height, width, patch):
    model = make_model(backbone, of_backbone={"patch_size": patch})
    images = torch.randn(2, 3, height, width)
    outputs = model(images)
    rows, columns = height // patch, width // patch
    num_queries = WITH_REGISTERS.get(backbone, 6)
    assert outputs.class_queries_logits.shape == (2, num_queries, 4)
    assert outputs.masks_queries_logits.shape == (2, num_queries, 4 * rows, 4 * columns)
    assert outputs.transformer_decoder_last_hidden_state.shape == (2, num_queries, 32)
    interpolated = {"interpolate_pos_encoding": True} if backbone == "vit" else {}
    tokens = model.model.encoder(images, **interpolated).last_hidden_state
    assert tokens.shape[1] == SPECIAL_TOKENS[backbone] + rows * columns
    feature_map = outputs.encoder_last_hidden_state
    assert feature_map.shape == (2, 32, rows, columns)
    for row in range(rows):
        for column in range(columns):
            patch_token = tokens[:, SPECIAL_TOKENS[backbone] + row * columns + column]
            assert torch.equal(feature_map[:, :, row, column], patch_token)


@pytest.mark.parametrize("backbone", ["rats", "dinov2", "dinov2_with_registers"])
def test_the_feature_map_is_the_backbones_own(make_model, backbone):
    model = make_model(backbone)
    own = AutoBackbone.from_config(model.config.backbone_config).eval()
    (own.rats if backbone == "rats" else own).load_state_dict(model.model.encoder.state_dict())
    assert isinstance(own, RatsBackbone) == (backbone == "rats")
    (feature_map,) = own(IMAGES).feature_maps
    assert torch.equal(model(IMAGES).encoder_last_hidden_state, feature_map)


def test_patches_may_be_rectangles(make_model):
    model = make_model(of_backbone={"patch_size": (8, 4), "image_size": (32, 16)})
    assert model(torch.randn(1, 3, 32, 24)).masks_queries_logits.shape == (1, 8, 16, 24)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_images_that_the_patch_does_not_divide_are_refused(make_model, backbone):
    """Convolutions would drop the border in silence, and masks would be stretched over it."""
    with pytest.raises(ValueError, match=r"multiple"):
        make_model(backbone)(torch.randn(1, 3, 32, 45))


@pytest.mark.parametrize("rows, columns", [(4, 6), (3, 5), (1, 1)])
def test_the_pyramid_has_four_scales_finest_first(rows, columns):
    maps = RatsFeaturePyramid(24, 32)(torch.randn(2, 24, rows, columns))
    expected = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), (-(-rows // 2), -(-columns // 2))]
    assert [tuple(one.shape) for one in maps] == [(2, 32, *size) for size in expected]


# The encoder alone


@pytest.mark.parametrize("blocks, factor", [(0, 1), (1, 2), (2, 4)])
def test_encoder_only_reads_masks_from_the_registers_and_patches(make_model, blocks, factor):
    model = make_model(segmentation_head="encoder_only", num_upscale_blocks=blocks)
    outputs = model(IMAGES)
    assert outputs.class_queries_logits.shape == (2, 8, 4)
    assert outputs.masks_queries_logits.shape == (2, 8, 4 * factor, 6 * factor)
    tokens = model.model.encoder(IMAGES).last_hidden_state
    pixels = model.model.upscale_block(tokens[:, 8:].transpose(1, 2).unflatten(-1, (4, 6)))
    for register in range(8):
        mask = (model.model.mask_head(tokens[:, register])[:, :, None, None] * pixels).sum(dim=1)
        torch.testing.assert_close(outputs.masks_queries_logits[:, register], mask, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(outputs.class_queries_logits[:, register], model.class_predictor(tokens[:, register]))


@pytest.mark.parametrize(
    "training, fields, layers",
    [
        (True, {}, 3),
        (True, {"num_auxiliary_layers": 1}, 1),
        (True, {"num_auxiliary_layers": 9}, 4),  # all blocks before the last, and not the embeddings
        (True, {"num_auxiliary_layers": 0}, 0),
        (True, {"use_auxiliary_loss": False}, 0),
        (False, {}, 0),
    ],
    ids=str,
)
def test_encoder_only_trains_earlier_blocks_too(make_model, training, fields, layers):
    model = make_model(segmentation_head="encoder_only", of_backbone={"num_hidden_layers": 5}, **fields).train(training)
    outputs = model(IMAGES, output_auxiliary_logits=True)
    assert len(outputs.auxiliary_logits) == layers
    states = model.model.encoder(IMAGES, output_hidden_states=True).hidden_states
    for of_layer, state in zip(outputs.auxiliary_logits, states[5 - layers : 5], strict=True):
        registers = model.model.encoder.layernorm(state)[:, :8]
        torch.testing.assert_close(of_layer["class_queries_logits"], model.class_predictor(registers))
        assert of_layer["masks_queries_logits"].shape == outputs.masks_queries_logits.shape


# Parameters


@pytest.mark.parametrize(
    "backbone, head, query_source",
    [
        ("rats", "encoder_only", "registers"),
        *((backbone, "mask2former", "registers") for backbone in WITH_REGISTERS),
        *((backbone, "mask2former", "learned") for backbone in BACKBONES),
    ],
)
def test_every_trainable_parameter_gets_a_gradient(make_model, tmp_path, backbone, head, query_source):
    """DistributedDataParallel refuses a model in which one gets none; so the mask token is frozen, also after loading."""
    model = make_model(backbone, segmentation_head=head, query_source=query_source)
    model.save_pretrained(tmp_path)
    for one in (model.train(), RatsForUniversalSegmentation.from_pretrained(tmp_path).train()):
        assert {name for name, parameter in one.named_parameters() if parameter.requires_grad} == gradients(one).keys()
        mask_token = getattr(one.model.encoder.embeddings, "mask_token", None)
        assert (mask_token is None) == (backbone == "vit")
        assert mask_token is None or not mask_token.requires_grad


# Labels


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "masks, labels",
    [
        ([MASKS[0], torch.zeros(0, 32, 48)], [LABELS[0], torch.zeros(0, dtype=torch.long)]),
        ([torch.zeros(0, 32, 48)] * 2, [torch.zeros(0, dtype=torch.long)] * 2),
        ([torch.ones(3, 32, 48)] * 2, [torch.tensor([0, 1, 1])] * 2),  # all of them everywhere
        ([torch.zeros(2, 32, 48)] * 2, [torch.tensor([0, 1])] * 2),  # segments without a pixel
        ([torch.eye(16).repeat(9, 1, 1)] * 2, [torch.arange(9) % 3] * 2),  # more than queries, of another resolution
        (torch.ones(2, 2, 32, 48), torch.ones(2, 2, dtype=torch.uint8)),  # tensors, as when all images have as many
    ],
    ids=["one image empty", "all images empty", "overlapping", "no pixels", "more than queries", "tensors"],
)
def test_labels_of_all_sorts_give_a_finite_loss_and_gradients(make_model, head, masks, labels):
    model = make_model(segmentation_head=head).train()
    found = gradients(model, mask_labels=masks, class_labels=labels)
    assert loss_of(model, mask_labels=masks, class_labels=labels).isfinite()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["class_predictor.weight"].abs().sum() > 0


def test_masks_may_be_of_any_type(make_model):
    model = make_model()
    expected = loss_of(model)
    for dtype in (torch.uint8, torch.int64, torch.float32, torch.float64, torch.float16):
        assert torch.equal(loss_of(model, mask_labels=[masks.to(dtype) for masks in MASKS]), expected), dtype
    for dtype in (torch.uint8, torch.int32):
        assert torch.equal(loss_of(model, class_labels=[labels.to(dtype) for labels in LABELS]), expected), dtype


def test_more_segments_than_queries_are_told(make_model, monkeypatch):
    told = []
    monkeypatch.setattr("modeling_rats.universal_segmentation_rats.logger.warning_once", told.append)
    model = make_model()
    loss_of(model)
    assert not told
    loss_of(model, mask_labels=[torch.ones(9, 32, 48)] * 2, class_labels=[torch.zeros(9, dtype=torch.long)] * 2)
    assert told[0].startswith("An image has 9 segments and the model 8 queries") and "num_queries" in told[0]


@pytest.mark.parametrize(
    "labelled, message",
    [
        ({"class_labels": [LABELS[0], torch.tensor([0, 3, 1])]}, r"image 1: class_labels must be from 0 to 2, but hold \[3\]"),
        ({"class_labels": [torch.tensor([-1, 255]), LABELS[1]]}, r"image 0: .* hold \[-1, 255\]; pixels without a label"),
        (
            {"class_labels": [LABELS[0], torch.tensor([0.0, 1.0, 1.0])]},
            "image 1: class_labels of type torch.float32 must be int",
        ),
        (
            {"class_labels": [LABELS[0], LABELS[0]]},
            r"image 1: mask_labels of shape \(3, 32, 48\) and class_labels of shape \(2,\)",
        ),
        ({"mask_labels": [MASKS[0], MASKS[1][0]]}, r"image 1: mask_labels of shape \(32, 48\) .* \(segments, height, width\)"),
        ({"mask_labels": [MASKS[0], MASKS[1][:, :16]]}, r"image 1: mask_labels of \(16, 48\) px, and .* one size"),
        ({"mask_labels": [MASKS[0] * 255, MASKS[1]]}, "image 0: mask_labels must be 0 or 1, but reach 255; use masks > 0"),
        ({"mask_labels": MASKS[:1], "class_labels": LABELS[:1]}, "2 images came with 1 mask_labels and 1 class_labels"),
        ({"mask_labels": MASKS, "class_labels": LABELS[:1]}, "2 images came with 2 mask_labels and 1 class_labels"),
        ({"mask_labels": None}, "mask_labels and class_labels go together"),
        ({"class_labels": None}, "mask_labels and class_labels go together"),
    ],
    ids=str,
)
@pytest.mark.parametrize("head", HEADS)
def test_wrong_labels_are_named(make_model, head, labelled, message):
    with pytest.raises(ValueError, match=message):
        loss_of(make_model(segmentation_head=head), **labelled)


# Pretrained backbones


def build(model_class, config):
    torch.manual_seed(7)
    return model_class(config)


def assert_same_encoder(model, source):
    wanted, given = model.model.encoder.state_dict(), source.base_model.state_dict()
    if not wanted.keys() <= given.keys():
        given = source.state_dict()
    assert len(wanted) > 20
    for name, value in wanted.items():
        assert torch.equal(value, given[name].float()), name
    assert model(IMAGES).masks_queries_logits.isfinite().all()


SOURCES = [
    ("rats", RatsModel),
    ("rats", RatsForPreTraining),
    ("rats", RatsBackbone),
    ("vit", ViTModel),
    ("vit", ViTForImageClassification),
    ("dinov2", Dinov2ForImageClassification),
    ("dinov2_with_registers", AutoModel.from_config),
    ("dinov3_vit", AutoModel.from_config),
]


@pytest.mark.parametrize("through", ["folder", "model"])
@pytest.mark.parametrize("backbone, model_class", SOURCES, ids=[f"{name}-{source.__name__}" for name, source in SOURCES])
def test_a_backbones_weights_are_taken_over(make_backbone_config, tmp_path, through, backbone, model_class):
    source = build(model_class, make_backbone_config(backbone))
    source.save_pretrained(tmp_path)
    fields = SIZES | ({} if backbone in WITH_REGISTERS else {"query_source": "learned", "num_queries": 6})
    model = RatsForUniversalSegmentation.from_backbone(source if through == "model" else tmp_path, **fields)
    assert type(model.config.backbone_config) is type(source.config) and model.config.num_labels == 3
    assert_same_encoder(model, source)


@pytest.mark.parametrize("through", ["folder", "model"])
def test_a_backbone_saved_in_half_precision_becomes_a_model_in_one_precision(make_config, tmp_path, through):
    source = build(RatsModel, make_config()).bfloat16()
    source.save_pretrained(tmp_path)
    model = RatsForUniversalSegmentation.from_backbone(source if through == "model" else str(tmp_path), **SIZES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same_encoder(model, source)


@pytest.mark.parametrize("head", HEADS)
def test_the_head_is_chosen_with_the_backbone(make_config, head):
    source = build(RatsModel, make_config())
    names = {0: "road", 1: "car"}
    fields = {name: value for name, value in SIZES.items() if name != "num_labels"}
    model = RatsForUniversalSegmentation.from_backbone(source, segmentation_head=head, id2label=names, **fields)
    assert model.config.segmentation_head == head and model.config.id2label == names
    assert model(IMAGES).class_queries_logits.shape == (2, 8, 3)


def test_missing_weights_of_the_backbone_are_refused(make_config, tmp_path):
    build(RatsModel, make_config()).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("embeddings.register_tokens")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights .*\(first: embeddings.register_tokens\), .* RatsModel.save_pretrained"
    ):
        RatsForUniversalSegmentation.from_backbone(tmp_path, **SIZES)


def test_a_backbones_folder_is_no_segmentation_model(make_config, tmp_path):
    build(RatsModel, make_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='rats' is none of .*from_backbone"):
        RatsForUniversalSegmentation.from_pretrained(tmp_path)
    with pytest.raises(OSError):
        RatsForUniversalSegmentation.from_backbone(str(tmp_path / "nothing here"))


# Saving and loading


@pytest.fixture
def saved(make_model, tmp_path):
    """A folder with the model and its processor, and the model."""

    def save(**fields):
        model = make_model(id2label={0: "sky", 1: "road", 2: "car"}, **fields)
        with torch.no_grad():
            model.class_predictor.bias.copy_(torch.tensor([2.0, 1.0, 0.0, -4.0]))  # always sees something
        model.save_pretrained(tmp_path / "saved")
        processor = Mask2FormerImageProcessor(size={"height": 32, "width": 48}, size_divisor=8)
        processor.save_pretrained(tmp_path / "saved")
        return tmp_path / "saved", model

    return save


@pytest.mark.parametrize("head", HEADS)
def test_a_saved_model_is_the_same_through_every_door(saved, head):
    folder, model = saved(segmentation_head=head)
    expected = model(IMAGES)
    for door in (RatsForUniversalSegmentation, AutoModelForUniversalSegmentation, AutoModelForImageSegmentation):
        loaded = door.from_pretrained(folder).eval()
        assert type(loaded) is RatsForUniversalSegmentation
        outputs = loaded(IMAGES)
        assert torch.equal(outputs.masks_queries_logits, expected.masks_queries_logits)
        assert torch.equal(outputs.class_queries_logits, expected.class_queries_logits)
        assert loaded.config.id2label == {0: "sky", 1: "road", 2: "car"}
        assert torch.equal(loss_of(loaded), loss_of(model))  # also with the weights of its classes
    assert type(AutoConfig.from_pretrained(folder)) is RatsUniversalSegmentationConfig
    assert isinstance(AutoImageProcessor.from_pretrained(folder), Mask2FormerImageProcessor)
    assert AutoImageProcessor.from_pretrained(folder).size_divisor == 8
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["RatsForUniversalSegmentation"]


def test_other_labels_start_a_new_class_predictor_alone(saved):
    folder, model = saved()
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        RatsForUniversalSegmentation.from_pretrained(folder, num_labels=5)
    loaded, info = RatsForUniversalSegmentation.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    changed = {"class_predictor.weight", "class_predictor.bias", "criterion.empty_weight"}
    assert {key for key, *_ in info["mismatched_keys"]} == changed
    assert loaded.criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, 1, 1, 0.1])
    for name, value in model.state_dict().items():
        assert name in changed or torch.equal(loaded.state_dict()[name], value), name


# Processor and pipelines


def test_the_processors_readings_fit_the_image(saved):
    folder, model = saved()
    processor = AutoImageProcessor.from_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    labels = np.random.default_rng(0).integers(0, 3, (40, 56))
    inputs = processor([noise, noise], segmentation_maps=[labels, labels], return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (32, 48)
    outputs = model(**inputs)
    assert outputs.loss.isfinite()
    sizes = [(40, 56)] * 2
    semantic = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    assert [one.shape for one in semantic] == sizes and set(semantic[0].unique().tolist()) <= {0, 1, 2}
    options = {"target_sizes": sizes, "threshold": 0.0, "mask_threshold": 0.3}
    instances = processor.post_process_instance_segmentation(outputs, **options)
    panoptic = processor.post_process_panoptic_segmentation(outputs, overlap_mask_area_threshold=0.0, **options)
    for result in (*instances, *panoptic):
        assert result["segmentation"].shape == (40, 56) and result["segments_info"]
        assert {segment["label_id"] for segment in result["segments_info"]} <= {0, 1, 2}


@pytest.mark.parametrize("subtask", ["semantic", "instance", "panoptic"])
@pytest.mark.parametrize("by_path", [False, True])
def test_the_image_segmentation_pipeline_gives_masks_of_the_images_size(saved, subtask, by_path, caplog):
    folder, model = saved()
    caplog.set_level(logging.CRITICAL)  # it says that it does not know the class
    parts = {} if by_path else {"image_processor": AutoImageProcessor.from_pretrained(folder)}
    segmenter = pipeline("image-segmentation", model=str(folder) if by_path else model, **parts)
    assert type(segmenter.model) is RatsForUniversalSegmentation
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    options = {} if subtask == "semantic" else {"threshold": 0.0, "mask_threshold": 0.3, "overlap_mask_area_threshold": 0.0}
    segments = segmenter(Image.fromarray(noise), subtask=subtask, **options)
    assert segments
    for segment in segments:
        assert segment["mask"].size == (56, 40) and segment["label"] in {"sky", "road", "car"}


# Outputs


@pytest.mark.parametrize("labelled", [{}, LABELLED], ids=["no labels", "labels"])
@pytest.mark.parametrize("head", HEADS)
def test_a_tuple_holds_the_same_in_the_same_order(make_model, head, labelled):
    model = make_model(segmentation_head=head)
    torch.manual_seed(0)
    outputs = model(IMAGES, **labelled)
    torch.manual_seed(0)
    as_tuple = model(IMAGES, **labelled, return_dict=False)
    torch.manual_seed(0)
    model.config.return_dict = False
    by_config = model(IMAGES, **labelled)
    assert len(as_tuple) == len(by_config) == len(outputs) == (6 if labelled else 5)
    for value, first, second in zip(outputs.to_tuple(), as_tuple, by_config, strict=True):
        assert torch.equal(value, first) and torch.equal(value, second)


@pytest.mark.parametrize("through", ["call", "config"])
@pytest.mark.parametrize("head", HEADS)
def test_more_is_returned_when_it_is_asked_for(make_model, head, through):
    model = make_model(segmentation_head=head)
    model.set_attn_implementation("eager")
    assert model.model.encoder.config._attn_implementation == "eager"
    extras = ("hidden_states", "attentions", "auxiliary_logits")
    plain = model(IMAGES)
    assert not {"encoder_hidden_states", "attentions", "auxiliary_logits"} & plain.keys()
    asked = {f"output_{name}": True for name in extras}
    if through == "config":
        for name, value in asked.items():
            setattr(model.config, name, value)
        asked = {}
    outputs = model(IMAGES, **asked)
    assert torch.equal(outputs.masks_queries_logits, plain.masks_queries_logits)
    shapes = {name: [tuple(one.shape) for one in outputs[name]] for name in outputs if name.endswith("states")}
    if head == "encoder_only":
        assert shapes["encoder_hidden_states"] == [(2, 8 + 24, 32)] * 3
        assert [one.shape for one in outputs.attentions] == [(2, 4, 2, 24)] * 2  # compress maps
        assert outputs.auxiliary_logits == []
    else:
        assert shapes["encoder_hidden_states"] == [(2, 32, 16, 24), (2, 32, 8, 12), (2, 32, 4, 6), (2, 32, 2, 3)]
        assert shapes["pixel_decoder_hidden_states"] == [(2, 32, 2, 3), (2, 32, 4, 6), (2, 32, 8, 12)]
        assert shapes["transformer_decoder_hidden_states"] == [(8, 2, 32)] * 4
        assert [one.shape for one in outputs.attentions] == [(2, 4, 8, 8)] * 3
        assert [one["masks_queries_logits"].shape for one in outputs.auxiliary_logits] == [(2, 8, 16, 24)] * 3
        assert [one["class_queries_logits"].shape for one in outputs.auxiliary_logits] == [(2, 8, 4)] * 3


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_equals_its_images_one_by_one(make_model, head):
    model = make_model(segmentation_head=head)
    outputs = model(IMAGES)
    for name in ("masks_queries_logits", "class_queries_logits"):
        one_by_one = torch.cat([model(image[None])[name] for image in IMAGES])
        torch.testing.assert_close(outputs[name], one_by_one, atol=1e-5, rtol=1e-4)


# Training and running conveniences


@pytest.mark.parametrize("head, use_reentrant", [("mask2former", False), ("encoder_only", False), ("encoder_only", True)])
def test_checkpointing_changes_no_gradient(make_model, head, use_reentrant):
    """Reentrant checkpoints do not follow the lists of feature maps that Mask2Former's decoder layers take."""
    model = make_model(segmentation_head=head).train()
    expected = gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed = gradients(model)
    assert checkpointed.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@pytest.mark.parametrize("how", ["autocast", "whole model"])
@pytest.mark.parametrize("head", HEADS)
def test_half_precision_stays_finite_and_close(make_model, head, how):
    model = make_model(segmentation_head=head, of_backbone={"initializer_range": 0.05}).train()
    expected = loss_of(model).item()
    if how == "whole model":
        model = model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        loss = loss_of(model)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=0.03)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


def test_the_loss_is_computed_in_float32_under_autocast(make_model):
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(IMAGES, output_auxiliary_logits=True)
        torch.manual_seed(3)
        under_autocast = model.get_loss_dict(
            outputs.masks_queries_logits, outputs.class_queries_logits, MASKS, LABELS, outputs.auxiliary_logits
        )
    assert outputs.class_queries_logits.dtype == torch.bfloat16
    torch.manual_seed(3)
    without = model.get_loss_dict(
        outputs.masks_queries_logits, outputs.class_queries_logits, MASKS, LABELS, outputs.auxiliary_logits
    )
    assert len(without) == 12
    for name, value in without.items():
        assert torch.equal(under_autocast[name], value) and value.dtype == torch.float32, name


@pytest.mark.parametrize("head", HEADS)
def test_a_model_is_loaded_to_a_device_and_in_a_precision(saved, head):
    folder, model = saved(segmentation_head=head)
    mapped = RatsForUniversalSegmentation.from_pretrained(folder, device_map={"": "cpu"}).eval()
    assert torch.equal(mapped(IMAGES).masks_queries_logits, model(IMAGES).masks_queries_logits)
    halved = RatsForUniversalSegmentation.from_pretrained(folder, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}
    assert halved(IMAGES).masks_queries_logits.isfinite().all()


def test_the_encoder_alone_runs_from_disk(saved, tmp_path):
    pytest.importorskip("accelerate")
    folder, model = saved(segmentation_head="encoder_only")
    options = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    offloaded = RatsForUniversalSegmentation.from_pretrained(folder, **options).eval()
    assert any(parameter.device.type == "meta" for parameter in offloaded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(offloaded(IMAGES).masks_queries_logits, model(IMAGES).masks_queries_logits)


def test_mask2formers_decoder_does_not_run_from_disk(saved, tmp_path):
    """A limit of accelerate with torch's own MultiheadAttention, which is in Mask2Former. Once it is gone, this fails."""
    accelerate = pytest.importorskip("accelerate")
    tokens = torch.randn(3, 1, 8)
    with pytest.raises(RuntimeError, match="meta"):
        accelerate.cpu_offload(nn.MultiheadAttention(8, 2), execution_device=torch.device("cpu"))(tokens, tokens, tokens)
    folder, _ = saved()
    options = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    with pytest.raises(RuntimeError, match="meta"):
        RatsForUniversalSegmentation.from_pretrained(folder, **options).eval()(IMAGES)


def test_parts_that_share_tensors_stay_on_one_device(make_model):
    accelerate = pytest.importorskip("accelerate")
    model = make_model()
    whole = {"RatsQueryTransformerModule", "Mask2FormerPixelDecoder", "RatsFeaturePyramid", "RatsEmbeddings", "RatsLayer"}
    assert whole <= set(model._no_split_modules)
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    placed = accelerate.infer_auto_device_map(model, {0: total // 2, 1: total}, no_split_module_classes=model._no_split_modules)
    assert {0, 1} <= set(placed.values())
    assert not [name for name in placed if name.startswith(("model.transformer_module.", "model.pixel_decoder."))]


@pytest.mark.parametrize("head", HEADS)
def test_compiles_as_one_graph(make_model, head):
    torch.compiler.reset()
    model = make_model(segmentation_head=head, decoder_layers=2, of_backbone={"num_hidden_layers": 1})
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IMAGES).masks_queries_logits, model(IMAGES).masks_queries_logits)
    torch.compiler.reset()
