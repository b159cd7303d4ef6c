"""Five kinds of backbone are read alike: the right tokens in the right places, maps of the last block, whole images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from evaluation.backbones import SUPPORTED, load_backbone
from evaluation.readings import Reading
from evaluation.register_attention_variants import RatsVariantConfig, RatsVariantModel
from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsImageProcessor, RatsModel

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
NUM_REGISTERS = {"rats": 4, "vit": 0, "dinov2": 0, "dinov2_with_registers": 3, "dinov3_vit": 3, "rats_variant": 4}
RATS = ("rats", "rats_variant")
FINAL_NORM = {"dinov3_vit": "norm"}
GRID = (3, 5)


def build(kind):
    """A tiny model with large random weights, so that no token is like another."""
    models = {
        "rats": lambda: RatsModel(RatsConfig(**SIZES, intermediate_size=32, num_registers=4)),
        "vit": lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=32), add_pooling_layer=False),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2)),
        "dinov2_with_registers": lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=3)
        ),
        "dinov3_vit": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, intermediate_size=32, num_register_tokens=3)),
        "rats_variant": lambda: RatsVariantModel(
            RatsVariantConfig(**SIZES, intermediate_size=32, num_registers=4, attention_variant="register_keys")
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = models[kind]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.4)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, with the image processor that its kind has on the Hub: most would crop or keep the shape."""
    rats_processor = RatsImageProcessor(size={"height": 32, "width": 32}, ensure_multiple_of=8, image_mean=MEAN, image_std=STD)
    processors = {
        **dict.fromkeys(RATS, rats_processor),
        "vit": ViTImageProcessor(image_mean=MEAN, image_std=STD),
        "dinov3_vit": DINOv3ViTImageProcessor(image_mean=MEAN, image_std=STD),
    }
    cropping = BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD
    )
    paths = {}
    for kind in SUPPORTED:
        paths[kind] = str(tmp_path_factory.mktemp(kind))
        build(kind).save_pretrained(paths[kind])
        processors.get(kind, cropping).save_pretrained(paths[kind])
    return paths


@pytest.fixture(params=SUPPORTED)
def kind(request):
    return request.param


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, 8 * GRID[0], 8 * GRID[1], generator=torch.Generator().manual_seed(0))


def test_tokens_are_those_of_the_final_layer_norm_in_their_places(kind, folders, pixel_values):
    backbone = load_backbone(folders[kind])
    normed = []
    final_norm = getattr(backbone.model, FINAL_NORM.get(kind, "layernorm"))
    hook = final_norm.register_forward_hook(lambda _module, _inputs, output: normed.append(output))
    class_token, registers, patches, grid = backbone.tokens(pixel_values)
    hook.remove()
    assert grid == GRID and backbone.num_registers == NUM_REGISTERS[kind] and not backbone.model.training
    assert backbone.patch_size == 8 and backbone.revision is None and not patches.requires_grad
    present = [None if class_token is None else class_token[:, None], registers, patches]
    assert torch.equal(torch.cat([tokens for tokens in present if tokens is not None], dim=1), normed[0])
    assert [tokens is not None for tokens in present] == [kind not in RATS, NUM_REGISTERS[kind] > 0, True]
    assert registers is None or registers.shape == (2, NUM_REGISTERS[kind], 16)
    assert patches.shape == (2, 15, 16)


def test_a_patch_token_belongs_to_its_place_in_the_image(kind, folders, pixel_values):
    """Once the blocks add nothing, a token tells of its own patch alone, and a register of its own embedding."""
    backbone = load_backbone(folders[kind])
    with torch.no_grad():
        for name, parameter in backbone.model.named_parameters():
            if any(part in name for part in (".o_proj.", ".fc2.", ".down_proj.")):
                parameter.zero_()
    changed = pixel_values.clone()
    changed[:, :, 8:16, 24:32] += 1  # row 1, column 3
    before, after = backbone.tokens(pixel_values), backbone.tokens(changed)
    differs = (before.patches != after.patches).any(dim=-1).unflatten(1, GRID)  # (B, rows, columns)
    assert differs.sum() == 2 and differs[:, 1, 3].all()
    if before.registers is not None:
        final_norm = getattr(backbone.model, FINAL_NORM.get(kind, "layernorm"))
        expected = final_norm(backbone.model.embeddings.register_tokens).expand(2, -1, -1)
        assert torch.allclose(before.registers, expected, atol=1e-6) and torch.equal(before.registers, after.registers)
    assert before.class_token is None or torch.equal(before.class_token, after.class_token)


def test_attention_maps_are_those_of_the_last_block(kind, folders, pixel_values):
    backbone = load_backbone(folders[kind])
    maps = backbone.attention_maps(pixel_values)
    assert backbone.model.config._attn_implementation == "sdpa"  # as before
    assert not any(module._forward_hooks for module in backbone.model.modules() if "Attention" in type(module).__name__)
    eager = load_backbone(folders[kind]).model
    eager.set_attn_implementation("eager")
    options = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    with torch.no_grad():
        attention = eager(pixel_values, output_attentions=True, **options).attentions[-1]  # (B, H, queries, keys)
    if kind in RATS:  # the variant's keys are the two registers of the head, too
        expected = attention[..., -15:].reshape(2, 4, *GRID)
        assert torch.allclose(attention.sum(dim=-1), torch.ones(2, 2, 2)) and (attention.shape[-1] == 15) == (kind == "rats")
    else:
        expected = attention[:, :, 0, -15:].reshape(2, 2, *GRID)
    assert torch.allclose(maps, expected, atol=1e-6) and maps.std() > 0.001


def test_whole_images_are_resized_and_normalised_and_nothing_is_cropped(kind, folders):
    backbone = load_backbone(folders[kind])
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:40], pixels[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    values = backbone.pixel_values([Image.fromarray(pixels), Image.new("RGB", (24, 24), "red")], (24, 48))
    assert values.shape == (2, 3, 24, 48) and values.dtype == torch.float32
    colours = values * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    for column, colour in ((0, (1, 0, 0)), (23, (0, 1, 0)), (47, (0, 0, 1))):
        assert torch.allclose(colours[0, :, :, column], torch.tensor(colour).view(3, 1).float().expand(3, 24), atol=0.01)
    assert torch.allclose(colours[1], torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 24, 48), atol=1e-5)


def test_a_size_that_patches_do_not_divide_is_refused(kind, folders):
    with pytest.raises(ValueError, match=r"24 x 36 px .*whole number of patches .*8 x 8 px"):
        load_backbone(folders[kind]).tokens(torch.zeros(1, 3, 24, 36))


@pytest.mark.parametrize("with_head", [ViTForImageClassification, RatsForPartSegmentation])
def test_a_checkpoint_with_a_head_gives_its_backbone(with_head, tmp_path):
    config = ViTConfig(**SIZES, intermediate_size=32)
    if with_head is RatsForPartSegmentation:
        config = RatsConfig(**SIZES, intermediate_size=32, num_registers=4)
    saved = with_head(config)
    saved.save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path)).model.state_dict()
    expected = saved.base_model.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_models_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="'no/such/folder' was not found"):
        load_backbone("no/such/folder")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "convnext"}))
    with pytest.raises(ValueError, match=r"model_type 'convnext'.*rats \(RATS\), vit .*dinov2_with_registers.*dinov3_vit"):
        load_backbone(str(tmp_path))
    model = build("dinov2")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layernorm" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    BitImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks 2 weights of the backbone \(first: layernorm.bias\)"):
        load_backbone(str(tmp_path))


def test_readings_are_those_of_the_blocks(folders, kind, pixel_values):
    backbone = load_backbone(folders[kind])
    layers = [module for module in backbone.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    left: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _module, _inputs, out: left.append(out)) for layer in layers]
    paper = backbone.tokens(pixel_values)
    for hook in hooks:
        hook.remove()
    norm = getattr(backbone.model, FINAL_NORM.get(kind, "layernorm"))
    first = left[0].shape[1] - GRID[0] * GRID[1]
    for layer in (-1, -2):
        for normed in (True, False):
            read = backbone.tokens(pixel_values, Reading(layer, normed))
            expected = norm(left[layer]) if normed else left[layer]
            torch.testing.assert_close(read.patches, expected[:, first:])
            assert read.grid == GRID and (read.registers is None) == (NUM_REGISTERS[kind] == 0)
            if read.registers is not None:
                torch.testing.assert_close(read.registers, expected[:, first - NUM_REGISTERS[kind] : first])
    centered = backbone.tokens(pixel_values, Reading(centered=True))
    torch.testing.assert_close(centered.patches, paper.patches - paper.patches.mean(dim=1, keepdim=True))
    if paper.registers is not None:
        torch.testing.assert_close(centered.registers.mean(dim=1), torch.zeros(2, 16), atol=1e-5, rtol=0)


def test_attention_is_read_from_any_block(folders, kind, pixel_values):
    backbone = load_backbone(folders[kind])
    last, before = backbone.attention_maps(pixel_values), backbone.attention_maps(pixel_values, -2)
    assert last.shape == before.shape and not torch.allclose(last, before)
    for read in (
        lambda layer: backbone.attention_maps(pixel_values, layer),
        lambda layer: backbone.tokens(pixel_values, Reading(layer)),
    ):
        with pytest.raises(ValueError, match=r"Block -3 of .* which has 2; choose one from -2 to -1"):
            read(-3)
