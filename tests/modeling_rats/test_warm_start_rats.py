"""A warm start computes what its source computes, wherever RATS and a ViT compute the same, and accounts for every tensor."""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    BeitConfig,
    BeitModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from modeling_rats import RatsConfig, RatsForPreTraining, RatsModel
from modeling_rats.warm_start_rats import load_vit_weights, warm_start

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


class LiteralDino(nn.Module):
    """The original DINO vision_transformer.py, without its forward: the names, and the fused qkv taken apart as there."""

    def __init__(self, size=32, heads=4, patch=8, grid=(4, 4), layers=2, layer_scale=False):
        super().__init__()
        self.heads = heads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], size))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size, patch, patch)})
        self.blocks = nn.ModuleList(self.block(size, layer_scale) for _ in range(layers))
        self.norm = nn.LayerNorm(size, eps=1e-6)

    @staticmethod
    def block(size, layer_scale):
        parts = {
            "norm1": nn.LayerNorm(size, eps=1e-6),
            "attn": nn.ModuleDict({"qkv": nn.Linear(size, 3 * size), "proj": nn.Linear(size, size)}),
            "norm2": nn.LayerNorm(size, eps=1e-6),
            "mlp": nn.ModuleDict({"fc1": nn.Linear(size, 2 * size), "fc2": nn.Linear(2 * size, size)}),
        }
        if layer_scale:  # as in the original DINOv2
            parts |= {name: nn.ParameterDict({"gamma": nn.Parameter(torch.ones(size))}) for name in ("ls1", "ls2")}
        return nn.ModuleDict(parts)

    def qkv(self, tokens, layer):
        batch, count, size = tokens.shape
        fused = self.blocks[layer]["attn"]["qkv"](tokens).reshape(batch, count, 3, self.heads, size // self.heads)
        return fused.permute(2, 0, 3, 1, 4)  # (3, B, H, L, d)


class Peer(NamedTuple):
    """What a source computes in the parts that RATS shares with it."""

    patches: Callable  # pixels -> (B, L, D), positions added
    qkv: Callable  # tokens, layer -> (3, B, H, L, d), its LayerNorm before
    output: Callable  # merged heads, layer -> what is added to the residual
    mlp: Callable  # tokens, layer -> what is added to the residual, its LayerNorm before
    norm: Callable


def ours(model):
    layers = model.encoder.layer

    def qkv(tokens, layer):
        attention, tokens = layers[layer].attention, layers[layer].layernorm_before(tokens)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return torch.stack([attention._split_heads(projection(tokens)) for projection in projections])

    return Peer(
        patches=lambda pixels: model.embeddings(pixels)[:, model.config.num_registers :],
        qkv=qkv,
        output=lambda merged, layer: layers[layer].attention.o_proj(merged),
        mlp=lambda tokens, layer: layers[layer].mlp(layers[layer].layernorm_after(tokens)),
        norm=model.layernorm,
    )


def theirs(model):
    if isinstance(model, LiteralDino):
        blocks = model.blocks

        def scaled(added, layer, name):
            return added * blocks[layer][name]["gamma"] if name in blocks[layer] else added

        def mlp(tokens, layer):
            parts = blocks[layer]["mlp"]
            hidden = nn.functional.gelu(parts["fc1"](blocks[layer]["norm2"](tokens)))
            return scaled(parts["fc2"](hidden), layer, "ls2")

        return Peer(
            patches=lambda pixels: model.patch_embed["proj"](pixels).flatten(2).transpose(1, 2) + model.pos_embed[:, 1:],
            qkv=lambda tokens, layer: model.qkv(blocks[layer]["norm1"](tokens), layer),
            output=lambda merged, layer: scaled(blocks[layer]["attn"]["proj"](merged), layer, "ls1"),
            mlp=mlp,
            norm=model.norm,
        )
    model = model.base_model
    is_vit = model.config.model_type == "vit"
    layers = model.layers if is_vit else model.encoder.layer
    first_patch = 1 + getattr(model.config, "num_register_tokens", 0)

    def qkv(tokens, layer):
        attention = layers[layer].attention
        tokens = (layers[layer].layernorm_before if is_vit else layers[layer].norm1)(tokens)
        projected = [projection(tokens) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
        return torch.stack([part.unflatten(-1, (4, -1)).transpose(1, 2) for part in projected])

    if is_vit:
        return Peer(
            patches=lambda pixels: model.embeddings(pixels, interpolate_pos_encoding=True)[:, 1:],
            qkv=qkv,
            output=lambda merged, layer: layers[layer].attention.o_proj(merged),
            mlp=lambda tokens, layer: layers[layer].mlp(layers[layer].layernorm_after(tokens)),
            norm=model.layernorm,
        )
    return Peer(
        patches=lambda pixels: model.embeddings(pixels)[:, first_patch:],
        qkv=qkv,
        output=lambda merged, layer: layers[layer].layer_scale1(layers[layer].attention.o_proj(merged)),
        mlp=lambda tokens, layer: layers[layer].layer_scale2(layers[layer].mlp(layers[layer].norm2(tokens))),
        norm=model.layernorm,
    )


def randomised(model):
    """Weights without any zeros and ones of an initialisation, so that nothing can be swapped or skipped unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vit(**overrides):
    return ViTConfig(**(SIZES | {"intermediate_size": 64} | overrides))


def dinov2(**overrides):
    return Dinov2Config(**(SIZES | {"mlp_ratio": 2} | overrides))


MODELS = {
    "vit": lambda: ViTModel(vit()),
    "vit without qkv bias": lambda: ViTModel(vit(qkv_bias=False)),
    "vit classifier": lambda: ViTForImageClassification(vit()),
    "vit with mask token": lambda: ViTForMaskedImageModeling(vit(encoder_stride=8)),
    "dinov2": lambda: Dinov2Model(dinov2()),
    "dinov2 with registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2)),
    "dino": LiteralDino,
    "dinov2 file": lambda: LiteralDino(layer_scale=True),
}
FOLDERS = ["vit", "vit classifier", "dinov2", "dinov2 with registers"]
FILES = ["dino", "dinov2 file"]
SOURCES = [(name, "module") for name in MODELS if name not in FILES]
SOURCES += [(name, "folder") for name in FOLDERS]
SOURCES += [(name, kind) for name in FILES for kind in ("pth", "safetensors", "state dict")]


@pytest.fixture(scope="module", params=SOURCES, ids=" ".join)
def source(request, tmp_path_factory):
    """A checkpoint, the settings it needs, its model, and the names of all tensors that it holds."""
    name, kind = request.param
    model = randomised(MODELS[name]())
    names, path = set(model.state_dict()), tmp_path_factory.mktemp("checkpoint")
    if kind == "module":
        return model, {}, model, names
    if kind == "folder":
        model.save_pretrained(path)
        return path, {}, model, {key.removeprefix("vit.") for key in names}
    heads = {"num_attention_heads": 4}  # 32 channels are no multiple of 64
    if kind == "state dict":
        return model.state_dict(), heads, model, names
    if kind == "safetensors":
        save_file(model.state_dict(), path / "model.safetensors")
        return str(path / "model.safetensors"), heads, model, names
    # As DINO's training writes it: a teacher with a projection head, wrapped for several GPUs, beside much else.
    teacher = {f"module.backbone.{key}": tensor for key, tensor in model.state_dict().items()}
    teacher["module.head.mlp.0.weight"] = torch.zeros(3, 32)
    student = {key: torch.zeros_like(tensor) for key, tensor in teacher.items()}
    checkpoint = {"student": student, "teacher": teacher, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}
    torch.save(checkpoint, path / "dino.pth")
    return path / "dino.pth", heads, model, {*teacher, "student", "epoch", "args"}


@torch.no_grad()
def test_it_computes_what_its_source_computes(source):
    checkpoint, settings, model, _ = source
    rats, _ = warm_start(checkpoint, 8, **settings)
    mine, peer = ours(rats), theirs(model)
    pixels, tokens = torch.randn(2, 3, 32, 32), torch.randn(2, 16, 32)
    torch.testing.assert_close(mine.patches(pixels), peer.patches(pixels))
    torch.testing.assert_close(mine.norm(tokens), peer.norm(tokens))
    for layer in range(2):
        torch.testing.assert_close(mine.qkv(tokens, layer), peer.qkv(tokens, layer))
        torch.testing.assert_close(mine.output(tokens, layer), peer.output(tokens, layer))
        torch.testing.assert_close(mine.mlp(tokens, layer), peer.mlp(tokens, layer))
    assert rats.config.layer_norm_eps == getattr(getattr(model, "config", None), "layer_norm_eps", 1e-6)
    assert rats.config.image_size == 32 and not rats.training


def test_the_report_accounts_for_every_tensor_once(source):
    checkpoint, settings, _, names = source
    rats, report = warm_start(checkpoint, 8, **settings)
    theirs_listed = [*set(report.taken.values()), *report.folded, *report.not_taken]
    assert sorted(theirs_listed) == sorted(names)
    assert sorted([*report.taken, *report.initialised]) == sorted(name for name, _ in rats.named_parameters())
    assert "embeddings.register_tokens" in report.initialised and set(report.adapted) <= set(report.taken)
    assert len(str(report).splitlines()) < 16


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "dinov2"])
@pytest.mark.parametrize("image_size", [(24, 40), (64, 64)], ids=str)
def test_other_image_sizes_see_the_positions_of_the_source(name, image_size):
    """Whether the checkpoint is resized on loading or the model interpolates at run time."""
    model = randomised(MODELS[name]())
    pixels = torch.randn(1, 3, *image_size)
    expected = theirs(model).patches(pixels)
    torch.testing.assert_close(ours(warm_start(model, 8)[0]).patches(pixels), expected)
    resized, report = warm_start(model, 8, image_size=image_size)
    assert resized.embeddings.position_embeddings.shape[1] == image_size[0] * image_size[1] // 64
    torch.testing.assert_close(ours(resized).patches(pixels), expected)
    assert "4 x 4" in report.adapted["embeddings.position_embeddings"]


@torch.no_grad()
def test_a_source_of_oblong_images_and_patches_keeps_its_grid():
    model = randomised(ViTModel(vit(image_size=(16, 40))))
    rats, _ = warm_start(model, 8)
    pixels = torch.randn(1, 3, 16, 40)
    torch.testing.assert_close(ours(rats).patches(pixels), model.embeddings(pixels)[:, 1:])
    assert rats.config.grid_size == (2, 5)

    file = randomised(LiteralDino(grid=(2, 5), patch=(8, 4))).state_dict()
    rats, _ = warm_start(file, 8, num_attention_heads=4, image_size=(16, 20))  # a file does not tell its grid
    torch.testing.assert_close(rats.embeddings.position_embeddings, file["pos_embed"][:, 1:])
    with pytest.raises(ValueError, match=r"11 position embeddings.*14 x 28 patches have 393; give image_size"):
        warm_start(file, 8, num_attention_heads=4, image_size=(112, 112))


def test_registers_start_around_the_class_token():
    model = randomised(MODELS["vit"]())
    start = (model.embeddings.cls_token + model.embeddings.position_embeddings[:, :1]).detach()
    torch.manual_seed(3)
    rats, _ = warm_start(model)
    registers = rats.embeddings.register_tokens.detach()
    assert registers.shape == (1, 64, 32)  # 16 for each of the 4 heads
    torch.testing.assert_close(registers.mean(dim=1, keepdim=True), start, atol=0.15, rtol=0)
    torch.manual_seed(3)
    torch.testing.assert_close(warm_start(model)[0].embeddings.register_tokens.detach(), registers, atol=0, rtol=0)

    def cosines(registers):
        normed = nn.functional.layer_norm(registers[0], (32,))  # what the first attention sees
        cosines = nn.functional.cosine_similarity(normed.unsqueeze(0), normed.unsqueeze(1), dim=-1)
        return cosines[~torch.eye(len(cosines), dtype=bool)]

    assert 0.75 < cosines(registers).mean() < 0.9 and cosines(registers).max() < 0.97
    with torch.no_grad():  # a source with a token a hundred times as large gives the same spread
        model.embeddings.cls_token.mul_(100)
    assert 0.75 < cosines(warm_start(model)[0].embeddings.register_tokens.detach()).mean() < 0.9
    with torch.no_grad():  # and one without any still gives registers that differ
        model.embeddings.cls_token.zero_()
        model.embeddings.position_embeddings.zero_()
    assert warm_start(model)[0].embeddings.register_tokens.std() > 0.01


def test_the_mask_token_is_taken_where_there_is_one():
    for name in ("vit with mask token", "dinov2"):
        model = randomised(MODELS[name]())
        rats, report = warm_start(model, 8)
        expected = model.base_model.embeddings.mask_token.detach().reshape(1, 1, 32)
        torch.testing.assert_close(rats.embeddings.mask_token.detach(), expected)
    _, report = warm_start(model, 8, use_mask_token=False)
    assert report.not_taken["embeddings.mask_token"] == "the model has no mask token"
    rats, report = warm_start(randomised(MODELS["vit"]()), 8)
    assert "embeddings.mask_token" in report.initialised and not rats.embeddings.mask_token.any()


def test_an_existing_model_is_filled_and_its_head_left_alone(make_config):
    model = RatsForPreTraining(make_config(layer_norm_eps=1e-6, image_size=64)).to(torch.bfloat16)
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    source = randomised(MODELS["vit"]())
    report = load_vit_weights(model, source)
    assert set(report.taken) | set(report.initialised) == {name for name, _ in model.rats.named_parameters()}
    fc1 = model.rats.encoder.layer[1].mlp.fc1.weight
    torch.testing.assert_close(fc1, source.layers[1].mlp.fc1.weight.to(torch.bfloat16))
    assert model.rats.embeddings.position_embeddings.shape[1] == 64
    assert all(torch.equal(head[name], tensor) for name, tensor in model.head.state_dict().items())


def test_a_refused_source_leaves_the_model_unchanged(make_config):
    model = RatsModel(make_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = randomised(MODELS["dino"]()).state_dict()
    source["blocks.1.mlp.fc1.weight"] = source["blocks.1.mlp.fc1.weight"][:40]
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.fc1\.weight .*\(64, 32\), but gives \(40, 32\)"):
        load_vit_weights(model, source)
    with pytest.raises(ValueError, match=r"num_hidden_layers=2 does not fit .*num_hidden_layers=3"):
        load_vit_weights(model, ViTModel(vit(num_hidden_layers=3)))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_half_precision_sources_become_float32():
    model = randomised(MODELS["dinov2"]()).to(torch.bfloat16)
    rats, _ = warm_start(model, 8)
    assert rats.dtype == torch.float32
    layer = model.encoder.layer[0]
    folded = layer.mlp.fc2.bias.float() * layer.layer_scale2.lambda1.float()
    torch.testing.assert_close(rats.encoder.layer[0].mlp.fc2.bias, folded, atol=0, rtol=0)


def test_a_module_tells_its_heads_and_a_file_has_those_of_dino():
    model = LiteralDino(heads=2)
    model.blocks[0]["attn"].num_heads = 2  # as DINO's own attention and timm's
    rats, report = warm_start(model, 8)
    assert rats.config.num_attention_heads == 2 and set(report.assumed) == {"hidden_act", "layer_norm_eps"}
    rats, report = warm_start(nn.ModuleDict({"backbone": MODELS["vit"](), "head": nn.Linear(32, 2)}), 8)
    assert rats.config.num_attention_heads == 4 and not report.assumed and "head.bias" in report.not_taken
    rats, report = warm_start(LiteralDino(size=192, layers=1).state_dict())
    assert rats.config.num_attention_heads == 3 and rats.config.num_registers == 48
    assert report.assumed["num_attention_heads"] == 3 and "num_attention_heads=3" in str(report)


@torch.no_grad()
def test_a_saved_warm_start_gives_the_same_outputs(tmp_path):
    rats, _ = warm_start(randomised(MODELS["dinov2"]()), 12, communicate=False, drop_path_rate=0.1)
    assert rats.config.num_registers == 12 and not rats.config.communicate
    rats.save_pretrained(tmp_path)
    again, pixels = RatsModel.from_pretrained(tmp_path), torch.randn(1, 3, 40, 24)
    torch.testing.assert_close(again(pixels).last_hidden_state, rats(pixels).last_hidden_state, atol=0, rtol=0)
    assert again(pixels).last_hidden_state.isfinite().all()


def broken(change):
    entries = randomised(MODELS["dino"]()).state_dict()
    change(entries)
    return entries


REFUSED = {
    "SwiGLU": (lambda: Dinov2Model(dinov2(use_swiglu_ffn=True)), {}, r"gated MLP \(SwiGLU, encoder\.layer\.0\.mlp\.gate_proj"),
    "rotary": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**SIZES, intermediate_size=64)), {}, "no learned position embeddings"),
    "relative": (lambda: BeitModel(BeitConfig(**SIZES, intermediate_size=64)), {}, "no learned position embeddings"),
    "no class token": (lambda: RatsModel(RatsConfig(**SIZES, num_registers=8)), {}, "exactly one cls_token.*it has none"),
    "two networks": (lambda: nn.ModuleList([LiteralDino(), LiteralDino()]), {}, r"it has 0\.cls_token, 1\.cls_token"),
    "layout of transformers": (lambda: ViTModel(vit()).state_dict(), {}, "without its configuration .* give the folder"),
    "unknown tensor": (
        lambda: broken(lambda e: e.update({"blocks.0.attn.q_norm.weight": torch.ones(8)})),
        {},
        "no place.*q_norm",
    ),
    "missing tensor": (lambda: broken(lambda e: e.pop("norm.bias")), {}, r"lacks 1 parameters, .*layernorm\.bias"),
    "video": (
        lambda: broken(lambda e: e.update({"patch_embed.proj.weight": torch.ones(32, 3, 2, 8, 8)})),
        {},
        r"patch_embed\.proj\.weight .*\(32, 3, 2, 8, 8\), but must be a convolution over images",
    ),
    "not finite": (lambda: broken(lambda e: e["norm.bias"].fill_(float("nan"))), {}, r"norm\.bias .* is not finite"),
    "quantised": (lambda: broken(lambda e: e.update({"norm.bias": torch.ones(32, dtype=torch.int8)})), {}, "torch.int8"),
    "offloaded": (lambda: LiteralDino().to("meta"), {}, "on meta, but must be"),
    "unknown heads": (MODELS["dino"], {}, "no multiple of the 64 channels .* give num_attention_heads"),
    "other heads": (MODELS["vit"], {"num_attention_heads": 8}, "num_attention_heads=8 does not fit ViTModel, .*heads=4"),
    "other width": (MODELS["vit"], {"hidden_size": 30}, "hidden_size=30 does not fit .*hidden_size=32"),
    "other patches": (MODELS["vit"], {"patch_size": (8, 16)}, r"patch_size=\(8, 16\) does not fit .*patch_size=8"),
    "other activation": (MODELS["vit"], {"hidden_act": "relu"}, "hidden_act=relu does not fit"),
    "unknown field": (MODELS["vit"], {"num_regsters": 8}, "num_regsters.* no fields of RatsConfig"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taken_is_refused_with_the_reason(case):
    make, overrides, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        warm_start(make(), 8, **overrides)


def test_the_same_fields_may_be_repeated():
    rats, _ = warm_start(MODELS["vit"](), 8, patch_size=[8, 8], hidden_size=32, num_attention_heads=4, layer_norm_eps=1e-5)
    assert rats.config.layer_norm_eps == 1e-5


def test_files_are_refused_rather_than_unpickled(tmp_path):
    torch.save(LiteralDino(), tmp_path / "whole_model.pth")
    with pytest.raises(ValueError, match=r"holds more than tensors.*load it yourself and pass its state dict"):
        warm_start(tmp_path / "whole_model.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, but must hold a state dict"):
        warm_start(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*absent\.pth; give a file"):
        warm_start(tmp_path / "absent.pth")
