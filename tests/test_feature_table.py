"""The feature table of the model page: every cell of its three columns, established on tiny random models."""

import ast
import contextlib
import copy
import functools
import importlib
import inspect
import itertools
import re
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    BitImageProcessor,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    pipeline,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY

from modeling_rats import RatsConfig, RatsImageProcessor

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "rats.md"

# Each check runs on RATS and on both peers.
FAMILIES = ["rats", "dinov2_with_registers", "dinov3_vit"]  # the columns
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CHECKS = {}


def config_of(family, **overrides):
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
    config_class, own = {
        "rats": (
            RatsConfig,
            {
                "intermediate_size": 64,
                "num_registers": 8,
                "num_prototypes": 16,
                "head_hidden_size": 24,
                "head_bottleneck_size": 8,
            },
        ),
        "dinov2_with_registers": (Dinov2WithRegistersConfig, {"num_register_tokens": 4}),
        "dinov3_vit": (DINOv3ViTConfig, {"intermediate_size": 64, "num_register_tokens": 4}),
    }[family]
    return config_class(**(common | {"initializer_range": 0.2} | own | overrides))


def model_of(family, auto_class=AutoModel, implementation="sdpa", **overrides):
    torch.manual_seed(0)
    return auto_class.from_config(config_of(family, **overrides), attn_implementation=implementation).eval()


def has_class(auto_class, family):
    return type(config_of(family)) in auto_class._model_mapping


def tokens(model, images=IMAGES, **kwargs):
    return model(images, **kwargs).last_hidden_state


def close(first, second, tolerance=1e-4):
    return torch.allclose(first, second, atol=tolerance, rtol=tolerance)


def similar(first, second):
    return nn.functional.cosine_similarity(first.float().flatten(), second.float().flatten(), dim=0).item() > 0.99


def feature(name):
    def register(function):
        CHECKS[name] = function
        return function

    return register


def class_features():
    for name, auto_class in {
        "image classification head": AutoModelForImageClassification,
        "segmentation head": AutoModelForSemanticSegmentation,
        "pretraining head": AutoModelForPreTraining,
    }.items():
        CHECKS[f"{name} (`{auto_class.__name__}`)"] = functools.partial(has_class, auto_class)


@feature("base model with pooled output (`AutoModel`)")
def _(family):
    return model_of(family)(IMAGES).pooler_output.shape == (2, 32)


@feature("backbone, feature maps of several layers (`AutoBackbone`)")
def _(family):
    maps = model_of(family, AutoBackbone, out_indices=[0, 1, 2])(IMAGES).feature_maps
    return [one.shape for one in maps] == [(2, 32, 4, 4)] * 3


@feature("backbone gives the registers of each layer")
def _(family):
    model = model_of(family, AutoBackbone, out_indices=[1, 2])
    model.config.return_registers = True
    return "registers" in model(IMAGES)


class_features()


@feature("parts without labels, from the registers")
def _(family):
    if not has_class(AutoModelForSemanticSegmentation, family):
        return False
    return model_of(family, AutoModelForSemanticSegmentation)(IMAGES).similarities.shape == (2, 8, 4, 4)


@feature("attention maps (`output_attentions`)")
def _(family):
    return len(model_of(family, implementation="eager")(IMAGES, output_attentions=True).attentions) == 2


@feature("attention maps of the steps after compress")
def _(family):
    outputs = model_of(family, implementation="eager")(
        IMAGES, output_communicate_attentions=True, output_broadcast_attentions=True
    )
    return all(outputs.get(f"{step}_attentions") is not None for step in ("communicate", "broadcast"))


@feature("hidden states of chosen layers alone")
def _(family):
    states = model_of(family)(IMAGES, output_hidden_states=[-2]).hidden_states
    return [state is not None for state in states] == [False, True, False]


@feature("pooled output without the last block's patches (`pooled_only`)")
def _(family):
    return "pooled_only" in inspect.signature(type(model_of(family)).forward).parameters


@feature("images of other sizes, oblong ones too")
def _(family):
    model = model_of(family)
    special = tokens(model).shape[1] - 16
    return [tokens(model, torch.randn(1, 3, *size)).shape[1] - special for size in [(16, 48), (64, 64)]] == [12, 64]


@feature("an oblong learned size (`image_size=(height, width)`)")
def _(family):
    model = model_of(family, image_size=(32, 48))
    try:
        return model(torch.randn(1, 3, 32, 48)).last_hidden_state.shape[1] >= 24
    except RuntimeError as error:
        assert "is invalid for input of size" in str(error)
        return False


@feature("sides that are no multiple of the patch are refused")
def _(family):
    try:
        model_of(family)(torch.randn(1, 3, 33, 37))
    except ValueError as error:
        assert "multiple" in str(error)
        return True
    return False


@feature("`bool_masked_pos`")
def _(family):
    model = model_of(family)
    return not close(tokens(model, bool_masked_pos=torch.eye(2, 16).bool()), tokens(model))


@feature("`attention_mask`")
def _(family):
    return "attention_mask" in inspect.signature(type(model_of(family)).forward).parameters


@feature("eager and sdpa attention agree")
def _(family):
    return close(tokens(model_of(family, implementation="eager")), tokens(model_of(family)))


def dispatched(implementation, family):
    model, calls = model_of(family), []

    def recording(*args, **kwargs):
        calls.append(args[1].shape)
        return sdpa_attention_forward(*args, **kwargs)

    expected = tokens(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS, implementation, recording)
        patch.setitem(ALL_MASK_ATTENTION_FUNCTIONS, implementation, lambda *args, **kwargs: None)  # flex would compile one
        model.config._attn_implementation = implementation  # set_attn_implementation would look for the kernels
        return bool(calls if close(tokens(model), expected) else ())


CHECKS["flash attention is called"] = functools.partial(dispatched, "flash_attention_2")
CHECKS["flex attention is called"] = functools.partial(dispatched, "flex_attention")


@feature("`set_attn_implementation`")
def _(family):
    model = model_of(family)
    model.set_attn_implementation("eager")
    return len(model(IMAGES, output_attentions=True).attentions) == 2


@feature("`torch.compile(fullgraph=True)`")
def _(family):
    torch.compiler.reset()
    model = model_of(family, num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    return model._can_compile_fullgraph and close(tokens(compiled), tokens(model))


def exports(free, sizes, family):
    model = model_of(family, num_hidden_layers=1)
    dynamic_shapes = {"pixel_values": dict.fromkeys(free, torch.export.Dim.AUTO)}
    program = torch.export.export(model, (), {"pixel_values": IMAGES}, dynamic_shapes=dynamic_shapes).module()
    for size in sizes:
        images = torch.randn(size[0], 3, *size[1:])
        try:
            outputs = program(pixel_values=images).last_hidden_state
        except AssertionError as error:
            assert "Guard failed" in str(error)
            return False
        if not close(outputs, tokens(model, images)):
            return False
    return True


CHECKS["`torch.export`, fixed shape"] = functools.partial(exports, [], [(2, 32, 32)])
CHECKS["`torch.export`, free batch size"] = functools.partial(exports, [0], [(2, 32, 32), (5, 32, 32)])
CHECKS["`torch.export`, free image size, square and oblong"] = functools.partial(
    exports, [0, 2, 3], [(2, 32, 32), (3, 48, 64), (2, 16, 40)]
)


def gradients(model):
    model.zero_grad()
    torch.manual_seed(0)
    tokens(model).sin().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def checkpoints(use_reentrant, family):
    model = model_of(family).train()
    expected = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    result = gradients(model)
    return result.keys() == expected.keys() and all(close(result[name], expected[name]) for name in expected)


CHECKS["gradient checkpointing, reentrant"] = functools.partial(checkpoints, True)
CHECKS["gradient checkpointing, not reentrant"] = functools.partial(checkpoints, False)


@feature("offload to disk")
def _(family, folder):
    pytest.importorskip("accelerate")
    model = model_of(family)
    model.save_pretrained(folder / "saved")
    offloaded = type(model).from_pretrained(folder / "saved", device_map={"": "disk"}, offload_folder=folder / "offload").eval()
    assert any(parameter.device.type == "meta" for parameter in offloaded.parameters())
    with torch.no_grad():
        return close(tokens(offloaded), tokens(model))


@feature("float16 and bfloat16")
def _(family):
    model = model_of(family, initializer_range=0.05)
    halves = [tokens(copy.deepcopy(model).to(dtype)) for dtype in (torch.float16, torch.bfloat16)]
    return all(half.isfinite().all() and similar(half, tokens(model)) for half in halves)


@feature("LoRA on all linear layers (peft)")
def _(family):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(model_of(family), settings).eval()
    outputs = adapted(pixel_values=IMAGES).last_hidden_state
    outputs.sin().sum().backward()
    trained = all(parameter.grad is not None for parameter in adapted.parameters() if parameter.requires_grad)
    return trained and close(tokens(adapted.merge_and_unload()), outputs) and not close(outputs, tokens(model_of(family)))


@feature("int8 (torch)")
def _(family):
    model = model_of(family, initializer_range=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its successor
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    return similar(tokens(quantised), tokens(model))


@feature("int8 (torchao)")
def _(family):
    with contextlib.redirect_stderr(None), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = pytest.importorskip("torchao.quantization")
    model = model_of(family, initializer_range=0.05)
    quantised = copy.deepcopy(model)
    quantization.quantize_(quantised, quantization.Int8DynamicActivationInt8WeightConfig())
    return similar(tokens(quantised), tokens(model)) and not torch.equal(tokens(quantised), tokens(model))


@feature("every class loads from every other's folder (only heads start anew)")
def _(family, folder):
    autos = [
        AutoModel,
        AutoBackbone,
        AutoModelForImageClassification,
        AutoModelForSemanticSegmentation,
        AutoModelForPreTraining,
    ]
    classes = {auto._model_mapping[type(config_of(family))] for auto in autos if has_class(auto, family)}
    assert len(classes) > 1
    for saved, loaded in itertools.product(classes, classes):
        saved(config_of(family)).save_pretrained(folder)
        _, info = loaded.from_pretrained(folder, output_loading_info=True)
        if info["mismatched_keys"] or [key for key in info["missing_keys"] if not key.startswith(("head.", "classifier."))]:
            return False
    return True


@feature("warm start from ViT, DINO and DINOv2")
def _(family):
    package = importlib.import_module(type(config_of(family)).__module__.rpartition(".")[0])
    return any("warm_start" in name or "load_vit" in name for name in dir(package))


def has_processor(backend, family):
    config_class = type(config_of(family))
    return config_class in IMAGE_PROCESSOR_MAPPING and backend in IMAGE_PROCESSOR_MAPPING[config_class]


CHECKS["image processor in `AutoImageProcessor`, torchvision"] = functools.partial(has_processor, "torchvision")
CHECKS["image processor in `AutoImageProcessor`, PIL"] = functools.partial(has_processor, "pil")


def has_pipeline(task, family):
    (_, options, _) = PIPELINE_REGISTRY.check_task(task)
    auto_class = next((auto for auto in options["pt"] if has_class(auto, family)), None)
    if auto_class is None:
        return False
    processor = BitImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    processor = RatsImageProcessor(size={"height": 32, "width": 32}) if family == "rats" else processor
    model = model_of(family, auto_class)
    try:
        answers = pipeline(task, model=model, image_processor=processor)(Image.new("RGB", (40, 32), "red"))
    except AttributeError as error:  # parts are read from `similarities`
        assert "part" in task, error
        return False
    return bool(answers)


for task in ("part-segmentation", "image-segmentation", "image-feature-extraction", "image-classification"):
    CHECKS[f'`pipeline("{task}")`'] = functools.partial(has_pipeline, task)


@feature("a saved folder carries its code (`trust_remote_code=True`)")
def _(family, folder):
    model_of(family).save_pretrained(folder)
    return bool(list(folder.glob("modeling_*.py"))) and "auto_map" in (folder / "config.json").read_text()


@feature("in transformers itself, nothing to import")
def _(family):
    return type(config_of(family)).__module__.startswith("transformers.")


@feature("gated MLP on request")
def _(family):
    return any(hasattr(config_of(family), name) for name in ("use_swiglu_ffn", "use_gated_mlp"))


@feature("LayerScale")
def _(family):
    return any("layer_scale" in name for name, _ in model_of(family).named_modules())


@feature("rotary positions")
def _(family):
    return any("rope" in name for name, _ in model_of(family).named_modules())


def feature_table():
    """Feature -> the cells of the three columns, and the tests named in the last."""
    rows = {}
    for line in re.search(r"^\| feature \|.*\n\|.*\n((?:\|.*\n)*)", PAGE.read_text(), re.M)[1].splitlines():
        name, *cells, tests = (cell.strip() for cell in line.strip("|").split(" | "))
        assert set(cells) <= {"yes", "no"} and len(cells) == len(FAMILIES), line
        rows[name] = (dict(zip(FAMILIES, cells, strict=True)), re.findall(r"`([^`]+)`", tests))
    return rows


def test_the_feature_table_has_a_check_for_every_row():
    assert list(feature_table()) == list(CHECKS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CHECKS)
def test_the_feature_table_is_true(name, family, tmp_path):
    holds = CHECKS[name](family, tmp_path) if "folder" in inspect.signature(CHECKS[name]).parameters else CHECKS[name](family)
    assert feature_table()[name][0][family] == ("yes" if holds else "no")


@pytest.mark.parametrize("name", CHECKS)
def test_the_tests_that_the_feature_table_names_exist(name):
    cells, tests = feature_table()[name]
    assert tests or cells["rats"] == "no"
    for test in tests:
        file, function = test.split("::")
        defined = [
            node.name for node in ast.parse((ROOT / "tests" / file).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert function in defined, test
