"""The authors' weights: every number where the source has it, the outputs of the figure written out, and no silent guess."""

import argparse
import re

import pytest
import torch
from safetensors.torch import save_file

from modeling_rats import RatsConfig, RatsForPartSegmentation, RatsForPreTraining, RatsModel, load_original_checkpoint
from modeling_rats.original_checkpoint_rats import read_original_checkpoint
from tests.original_checkpoints import (
    BASE,
    HEAD,
    SMALL,
    TINY,
    TINY_HEAD,
    VARIANTS,
    Variant,
    backbone,
    by_our_names,
    class_token,
    flat_with_student,
    forward,
    head,
    head_forward,
    layer_scales,
    positions_in_front,
    positions_of_registers_as,
    published,
    unwrapped,
)

SIZES = TINY | {"grid": (6, 6)}  # other squares than that fit 16 positions and 8 registers
HEADS = SIZES["heads"]
PAGE_MB = {"S": 176.2, "B": 436.2}  # of the files, by the authors' page, in 10^6 bytes


def head_with_gains(seed=1):
    tensors = head(SIZES["hidden_size"], **TINY_HEAD, seed=seed)
    return tensors | {"last_layer.weight_g": torch.linspace(0.5, 2, TINY_HEAD["prototypes"])[:, None]}


def read(entries, **options):
    return read_original_checkpoint(entries, **{"num_attention_heads": HEADS, **options})


def pixels(sizes, images=2):
    height, width = (side * sizes["patch"] for side in sizes["grid"])
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def in_float64(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


def assert_same_tensors(model, meant):
    ours, theirs = model.state_dict(), by_our_names(meant)
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []


@torch.no_grad()
def assert_computes_the_figure(model, meant, head_tensors, sizes):
    """Registers, patches and logits are those of the literal forward pass."""
    images, number = pixels(sizes), sizes["registers"]
    meant, head_tensors = in_float64(meant), in_float64(head_tensors)
    registers, patches = forward(meant, meant["register_tokens"][0], images, sizes["heads"])
    model = model.double()
    tokens = model.rats(images).last_hidden_state
    torch.testing.assert_close(tokens[:, :number], registers, rtol=0, atol=1e-10)
    torch.testing.assert_close(tokens[:, number:], patches, rtol=0, atol=1e-10)
    logits = head_forward(head_tensors, registers.mean(dim=1))
    torch.testing.assert_close(model(images).logits, logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_the_numbers_of_its_source_and_computes_the_figure(name):
    variant, head_tensors = VARIANTS[name], head_with_gains()
    sizes = SIZES | ({"grid": variant.grid} if variant.grid else {})
    entries, meant = variant.write(SIZES, head_tensors)
    model, _ = load_original_checkpoint(entries, with_head=True, num_attention_heads=HEADS, **variant.options)
    assert_same_tensors(model.rats, meant)
    assert model.config.grid_size == sizes["grid"] and model.config.num_registers == sizes["registers"]
    assert not model.training and {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert_computes_the_figure(model, meant, head_tensors, sizes)


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_tensor_of_the_source_is_in_one_place_of_the_report(name, with_head):
    variant = VARIANTS[name]
    entries, _ = variant.write(SIZES, head_with_gains())
    model, report = load_original_checkpoint(entries, with_head=with_head, num_attention_heads=HEADS, **variant.options)
    inner = next((entries[wrapper] for wrapper in ("teacher", "student") if wrapper in entries), None)
    sources = set(entries if inner is None else inner) | ((entries.keys() - {"teacher", "student"}) if inner else set())
    if inner is not None and {"teacher", "student"} <= entries.keys():
        sources.add("student")
    taken = {source for sources in report.taken.values() for source in sources.split(", ")}
    assert sorted([*taken, *report.folded, *report.not_taken]) == sorted(sources)
    ours = {name.removeprefix("rats.") for name in model.state_dict()}
    assert report.taken.keys() >= ours and not report.initialised


def test_the_report_says_what_was_changed_and_what_was_assumed():
    variant = Variant([positions_in_front(class_token=True, registers=True), class_token, layer_scales])
    entries, _ = variant.write(SIZES, head_with_gains())
    _, report = load_original_checkpoint(entries, num_attention_heads=HEADS, leave_out=["cls_token"])
    assert report.adapted["embeddings.position_embeddings"] == (
        "without the first 9 of 45; the first is that of a class token, which is not there"
    )
    assert "module.backbone.pos_embed" in report.adapted["embeddings.register_tokens"]
    assert report.not_taken["module.backbone.cls_token"] == "left out as asked"
    assert report.folded["module.backbone.blocks.1.ls2.gamma"] == "encoder.layer.1.mlp.fc2"
    assert report.assumed == {"hidden_act": "gelu", "layer_norm_eps": 1e-06, "register_order": "head_major"}
    text = str(report)
    assert text.startswith("Weights of RATS from the state dict") and "4 LayerScale vectors" in text
    assert "module.head.mlp.0.weight" in text and "--with_head" in text


def test_a_guess_among_squares_is_told_and_a_grid_ends_it():
    """25 positions are 5 x 5, or 4 x 4 behind those of a class token and of 8 registers."""
    variant = Variant([positions_in_front(class_token=True, registers=True)], grid=(4, 4))
    entries, meant = variant.write(SIZES)
    guessed = read(entries)
    assert guessed.fields["image_size"] == 40 and "5 x 5" in guessed.report.assumed["position_grid"]
    told = read(entries, position_grid=(4, 4))
    assert "position_grid" not in told.report.assumed
    assert_same_tensors(told.build(RatsModel), meant)


def test_heads_have_the_channels_of_dino_unless_their_number_is_given():
    wide = SIZES | {"hidden_size": 128, "heads": 2}
    for heads, options in ((2, {}), (4, {"num_attention_heads": 4})):
        tensors, head_tensors = backbone(**wide), head(128, **TINY_HEAD)
        model, report = load_original_checkpoint(published(tensors, head_tensors), with_head=True, **options)
        assert model.config.num_attention_heads == heads
        assert report.assumed.get("num_attention_heads") == (None if options else 2)
        assert_computes_the_figure(model, tensors, head_tensors, wide | {"heads": heads})
    with pytest.raises(ValueError, match=r"hidden_size=32 is no multiple of the 64 channels .* give num_attention_heads"):
        read_original_checkpoint(published(backbone(**SIZES)))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_float16_becomes_float32_of_the_same_numbers(tmp_path, suffix):
    halves = {name: tensor.half() for name, tensor in backbone(**SIZES).items()}
    path = tmp_path / f"checkpoint{suffix}"
    if suffix == ".pth":
        torch.save(published(halves) | {"args": argparse.Namespace(arch="region_vit_small")}, path)
    else:
        save_file(unwrapped(halves, {}), path)
    original = read(path)
    assert_same_tensors(original.build(RatsModel), {name: tensor.float() for name, tensor in halves.items()})
    assert original.report.source == str(path)


@pytest.mark.parametrize("one", [True, False])
def test_a_head_with_gains_keeps_them_through_saving_and_loading(tmp_path, one):
    tensors = backbone(**SIZES)
    head_tensors = head(SIZES["hidden_size"], **TINY_HEAD) if one else head_with_gains()
    model, report = load_original_checkpoint(published(tensors, head_tensors), with_head=True, num_attention_heads=HEADS)
    assert model.config.norm_last_layer is one and (model.head.prototypes.gain is None) is one
    assert report.taken["head.prototypes.gain"] == "module.head.last_layer.weight_g"
    model.save_pretrained(tmp_path)
    loaded = RatsForPreTraining.from_pretrained(tmp_path)
    assert_same_tensors(loaded.rats, tensors)
    assert_computes_the_figure(loaded, tensors, head_tensors, SIZES)


def test_a_head_by_the_names_of_newer_torch(tmp_path):
    tensors, old = backbone(**SIZES), head_with_gains()
    names = {"last_layer.weight_g": "original0", "last_layer.weight_v": "original1"}
    new = {f"last_layer.parametrizations.weight.{names[name]}" if name in names else name: old[name] for name in old}
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4, bias=False))
    assert {name.removeprefix("last_layer.") for name in new if "last_layer" in name} == module.state_dict().keys()
    model, _ = load_original_checkpoint(published(tensors, new), with_head=True, num_attention_heads=HEADS)
    assert_computes_the_figure(model, tensors, old, SIZES)


def test_without_the_head_the_model_is_one_for_parts():
    model, report = load_original_checkpoint(published(backbone(**SIZES), head_with_gains()), num_attention_heads=HEADS)
    assert isinstance(model, RatsForPartSegmentation)
    assert sum("--with_head" in why for why in report.not_taken.values()) == 8


def test_registers_may_be_named_with_or_without_wrappers():
    meant = backbone(**SIZES)
    written = meant | {"queries": torch.ones(4, 32)}  # could be the registers, too
    for name in ("register_tokens", "backbone.register_tokens", "module.backbone.register_tokens"):
        original = read(published(written), registers=name, leave_out=["queries"])
        assert_same_tensors(original.build(RatsModel), meant)


def test_fields_may_be_given_in_place_of_those_of_the_checkpoint():
    original = read(published(backbone(**SIZES)))
    assert original.build(RatsModel, part_layer=1).config.part_layer == 1
    with pytest.raises(
        ValueError, match=r"do not fit into a RatsModel of its sizes: .*register_tokens \(1, 8, 32\) instead of"
    ):
        original.build(RatsModel, num_registers=12)


def changed(**entries):
    """Tensors of the backbone in place of those, or beside them; None takes one out. `__` stands for a dot."""

    def change(state):
        for name, tensor in entries.items():
            name = f"module.backbone.{name.replace('__', '.')}"
            state.pop(name, None)
            if tensor is not None:
                state[name] = tensor

    return change


def with_nan(state):
    state["module.backbone.blocks.1.mlp.fc1.weight"][3, 5] = float("nan")


def two_networks(state):
    state |= {name.replace("module.backbone", "other"): tensor for name, tensor in state.items() if "backbone" in name}


def behind_another_name(state):
    """Blocks where nobody looks for them."""
    for name in [name for name in state if ".blocks." in name]:
        state[name.replace("blocks.", "transformer.blocks.")] = state.pop(name)


def batch_norm(state):
    state["module.head.mlp.1.weight"] = torch.ones(TINY_HEAD["hidden"])


def nan_in_head(state):
    state["module.head.mlp.0.bias"][0] = float("nan")


def no_head(state):
    for name in [name for name in state if "head" in name]:
        del state[name]


TOKENS = torch.ones(1, 8, 32)
REFUSED = {
    "missing block": (
        changed(blocks__0__mlp__fc1__weight=None),
        {},
        r"lacks 1 parameters .*encoder\.layer\.0\.mlp\.fc1\.weight",
    ),
    "missing in between": (
        lambda state: [state.pop(name) for name in list(state) if ".blocks.0." in name],
        {},
        r"lacks \d+ parameters of a RATS",
    ),
    "key bias alone missing": (
        changed(
            blocks__0__attn__qkv__bias=None, blocks__0__attn__q__bias=torch.ones(32), blocks__0__attn__v__bias=torch.ones(32)
        ),
        {},
        r"lacks 1 parameters .*encoder\.layer\.0\.attention\.k_proj\.bias",
    ),
    "two candidates": (
        changed(region_tokens=TOKENS),
        {},
        r"2 tensors that could be the registers.*register_tokens \(1, 8, 32\)",
    ),
    "two candidates by known names": (changed(reg_token=TOKENS), {}, "register_tokens.*reg_token|reg_token.*register_tokens"),
    "two candidates of two dimensions": (
        changed(queries=torch.ones(4, 32)),
        {},
        r"2 tensors that could be .*queries \(4, 32\)",
    ),
    "no candidate": (changed(register_tokens=None), {}, "no tensor that could be the registers.*--registers NAME"),
    "named, and another left": (changed(region_tokens=TOKENS), {"registers": "region_tokens"}, "no place: .*register_tokens"),
    "another number": ({}, {"num_registers": 12}, r"8 registers \(module\.backbone\.register_tokens\), and num_registers=12"),
    "no whole number": ({}, {"num_attention_heads": 5}, "8 registers .* for 5 heads, but each head owns N / H of them"),
    "not finite": (with_nan, {}, r"module\.backbone\.blocks\.1\.mlp\.fc1\.weight of .* is not finite"),
    "registers not finite": (changed(register_tokens=TOKENS * float("inf")), {}, "register_tokens of .* is not finite"),
    "whole numbers": (
        changed(norm__weight=torch.ones(32, dtype=torch.int8)),
        {},
        r"norm\.weight of .* must be a floating-point",
    ),
    "without a place": (changed(temperature=torch.ones(7)), {}, r"no place: module\.backbone\.temperature"),
    "scalar without a place": (changed(step=torch.tensor(3)), {}, r"no place: module\.backbone\.step"),
    "projection without a place": (changed(blocks__0__attn__own__bias=torch.ones(32)), {}, r"no place: .*attn\.own\.bias"),
    "beside the backbone": (lambda state: state.update({"centre": torch.ones(1, 16)}), {}, "no place: centre"),
    "two mask tokens": (changed(mask_token=TOKENS[:, :1], mask2=TOKENS[:, :1]), {}, r"no place: module\.backbone\.mask2"),
    "class token": (
        changed(cls_token=TOKENS[:, :1]),
        {},
        r"class token beside its registers .*leave_out=module\.backbone\.cls_token",
    ),
    "unknown to leave out": ({}, {"leave_out": ["klass"]}, "has no klass to leave out"),
    "unknown registers": ({}, {"registers": "queries"}, "has no tokens named queries"),
    "unknown order": ({}, {"register_order": "by_head"}, "register_order='by_head' must be one of head_major, register_major"),
    "no positions": (changed(pos_embed=None), {}, "no learned position embeddings"),
    "odd number of positions": (
        changed(pos_embed=torch.ones(1, 39, 32)),
        {},
        "has 39 positions, which are not those of a square",
    ),
    "another grid": ({}, {"position_grid": (4, 8)}, r"36 positions, which are not those of 4 x 8 patches.*--position_grid"),
    "two positions": (changed(pos_grid=torch.ones(1, 49, 32)), {}, "2 tensors of positions, of which one must be"),
    "two positions by known names": (changed(embeddings__position_embeddings=torch.ones(1, 36, 32)), {}, "position"),
    "two networks": (two_networks, {}, "2 patch embeddings"),
    "no network": (changed(patch_embed__proj__weight=None), {}, "no patch embedding"),
    "no blocks by a known name": (behind_another_name, {}, "transformer"),
    "patches by a linear layer": (changed(patch_embed__proj__weight=torch.ones(32, 192)), {}, r"patch_embed\.proj\.weight"),
    "wrong shape": (
        changed(blocks__1__mlp__fc2__weight=torch.ones(32, 100)),
        {},
        r"fc2\.weight \(32, 100\) instead of \(32, 128\)",
    ),
    "wrong rows of qkv": (changed(blocks__1__attn__qkv__weight=torch.ones(64, 32)), {}, r"q_proj\.weight \(22, 32\) instead"),
    "fused and separate": (changed(blocks__0__attn__q__weight=torch.ones(32, 32)), {}, r"attn\.q\.weight"),
    "one name twice": (
        lambda state: state.update({"backbone.norm.weight": torch.ones(32)}),
        {},
        "module.backbone.norm.weight and backbone.norm.weight, which are one name without wrappers",
    ),
    "batch norm in the head": (
        batch_norm,
        {"with_head": True},
        r"head that is not DINO's.*module\.head\.mlp\.1\.weight \(24,\)",
    ),
    "head not finite": (nan_in_head, {"with_head": True}, r"module\.head\.mlp\.0\.bias of .* is not finite"),
    "no head": (no_head, {"with_head": True}, "has no DINO head"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused(case):
    change, options, message = REFUSED[case]
    state = published(backbone(**SIZES), head_with_gains())["teacher"]
    if change:
        change(state)
    with pytest.raises(ValueError, match=message):
        load_original_checkpoint({"teacher": state}, **{"num_attention_heads": HEADS, **options})


def test_two_flat_networks_without_a_teacher_are_refused():
    state = flat_with_student(backbone(**SIZES), {})
    entries = {name.replace("teacher.", "other."): tensor for name, tensor in state.items()}
    with pytest.raises(ValueError, match="2 patch embeddings"):
        read(entries)


def test_an_error_lists_name_and_shape_of_all_that_was_found():
    """Also of the head; those of all blocks in one entry."""
    state = published(backbone(**SIZES) | {"queries": torch.ones(4, 32)}, head_with_gains())["teacher"]
    with pytest.raises(ValueError) as error:
        read(state)
    found = str(error.value).split("Found: ")[1].split(". Name the registers")[0].split("; ")
    assert "module.backbone.queries (4, 32)" in found and "module.backbone.blocks.*.attn.qkv.weight (96, 32) x 2" in found
    listed = 0
    for entry in found:
        shown, number = re.fullmatch(r"(.*\))(?: x (\d+))?", entry).groups(default="1")
        pattern = re.compile(re.escape(shown).replace(r"\*", r"\d+"))
        assert sum(pattern.fullmatch(f"{name} {tuple(tensor.shape)}") is not None for name, tensor in state.items()) == int(
            number
        )
        listed += int(number)
    assert listed == len(state)


@pytest.mark.parametrize(("letter", "sizes"), [("S", SMALL), ("B", BASE)])
def test_our_parameters_are_as_many_as_the_published_files_hold(letter, sizes):
    """The files hold one QKV and one output projection a block and one head: nothing more fits."""
    hidden_size = sizes["hidden_size"]
    config = RatsConfig(
        hidden_size=hidden_size,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        intermediate_size=4 * hidden_size,
        num_registers=sizes["registers"],
        patch_size=sizes["patch"],
        head_hidden_size=HEAD["hidden"],
        head_bottleneck_size=HEAD["bottleneck"],
        num_prototypes=HEAD["prototypes"],
        norm_last_layer=False,
        use_mask_token=False,
    )
    with torch.device("meta"):
        model = RatsForPreTraining(config)
    megabytes = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    one_projection_more = sizes["layers"] * hidden_size * hidden_size * 4 / 1e6
    assert megabytes == pytest.approx(PAGE_MB[letter], abs=0.2)
    assert megabytes + one_projection_more > PAGE_MB[letter] + 5


def test_sizes_are_those_that_the_weights_have():
    original = read(published(backbone(**SIZES, qkv_bias=False)))
    assert original.fields == {
        "hidden_size": 32,
        "num_channels": 3,
        "patch_size": 8,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "qkv_bias": False,
        "num_attention_heads": 4,
        "num_registers": 8,
        "image_size": 48,
        "use_mask_token": False,
    }


def test_positions_of_registers_beside_a_grid_of_as_many_patches():
    """16 registers on 4 x 4 patches: which of two tensors of 16 is whose, the shape does not tell."""
    sizes = SIZES | {"registers": 16}
    entries, _ = Variant([positions_of_registers_as("register_pos_embed")], grid=(4, 4)).write(sizes)
    with pytest.raises(ValueError, match="2 tensors of positions"):
        read(entries)
