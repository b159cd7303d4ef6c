"""The model page and the docstrings: snippets and examples that run, claims that hold, an API that is the code's."""

import contextlib
import doctest
import functools
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoModel,
    Dinov2WithRegistersConfig,
    ViTConfig,
    ViTModel,
)

from docs.write_api import api, written_api
from modeling_rats import RatsBackbone, RatsConfig, RatsForPartSegmentation, RatsImageProcessor, RatsModel
from modeling_rats.multiply_accumulates import ARCHITECTURES, multiply_accumulates

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "rats.md"
WITHOUT_THE_PACKAGE = "### Without installing\n"
OPTIONAL = ("peft", "torchao")  # not required by the project


def sections():
    """The page as (heading, text) of each section; a comment in a snippet is no heading."""
    found, fenced = [("", "")], False
    for line in PAGE.read_text().splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            found.append((line, ""))
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
    return found


def python_blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# Snippets of the page


def prepare(folder):
    """What the page's reader has: the checkpoints, a model as of `make quickstart`, a photograph, a small DINO ViT-S."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    head = {"num_prototypes": 256, "head_hidden_size": 256, "head_bottleneck_size": 64}
    config = RatsConfig(**sizes, **head, num_registers=16, patch_size=8, image_size=64, initializer_range=0.2)
    RatsForPartSegmentation(config).save_pretrained(folder / "outputs/quickstart/model")
    RatsImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder / "outputs/quickstart/model")
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(folder / "photo.jpg")
    small = ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=6, intermediate_size=96, image_size=32)
    ViTModel(small).save_pretrained(folder / "facebook/dino-vits16")


def with_checks(block):
    """`print(value)  # expected` -> a comparison of what is printed."""
    return re.sub(r"^( *)print\((.*)\)  # (.+)$", r"\1check(\2, expected='''\3''')", block, flags=re.M)


def check(*values, expected):
    assert " ".join(map(str, values)) == expected


def test_the_snippets_of_the_page_run_in_order(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # machine code takes minutes
    names, ran, checked = {"check": check}, 0, 0
    for heading, text in sections():
        for block in python_blocks(text) if heading != WITHOUT_THE_PACKAGE else []:
            lacking = [name for name in OPTIONAL if f"from {name}" in block and not importlib.util.find_spec(name)]
            if lacking:
                continue
            code = with_checks(block)
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(compile(code, f"docs/rats.md, {heading.strip('# ').strip()}", "exec"), names)
            ran, checked = ran + 1, checked + code.count("check(")
    assert ran >= 15 and checked >= 25
    assert {path.name for path in Path("outputs").iterdir()} == {"quickstart", "classifier", "warm"}


def test_the_snippets_for_those_without_the_package_run_without_it(tmp_path):
    prepare(tmp_path)
    ((_, text),) = [section for section in sections() if section[0] == WITHOUT_THE_PACKAGE]
    (block,) = python_blocks(text)
    script = f"""
import sys
sys.modules["modeling_rats"] = None  # as if it were not installed
import transformers
try:
    transformers.AutoModel.from_pretrained("outputs/quickstart/model")
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("loaded without a question")
{inspect.getsource(check)}
{with_checks(block)}
assert type(model).__module__.startswith("transformers_modules."), type(model)
"""
    settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    files = {path.name for path in (tmp_path / "outputs/quickstart/model").glob("*.py")}
    assert not files & {"warm_start_rats.py", "visualization.py"}  # as the page says
    assert {"modeling_rats.py", "pipeline_rats.py", "image_processing_pil_rats.py"} <= files


# Claims of the page


def test_the_lines_of_the_dictionarys_page_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks((ROOT / "docs" / "dictionary" / "README.md").read_text())
    names: dict = {}
    exec(compile(block, "docs/dictionary/README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "torch.Size([128, 128])" in shown and "'name': 'part " in shown
    assert "the commonest part" in names["named"].names and names["named"].names[1:] == names["dictionary"].names[1:20]
    assert (tmp_path / "outputs/dictionary/catalogue.jpg").is_file()


def test_the_lines_of_the_segmentation_page_run(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks((ROOT / "docs" / "segmentation.md").read_text())
    names: dict = {}
    exec(compile(block, "docs/segmentation.md", "exec"), names)
    assert 0 < names["loss"] < 1000 and names["model"].config.num_queries == 16
    assert names["semantic"].shape == (480, 640) and {segment["mask"].size for segment in names["segments"]} == {(640, 480)}


@pytest.mark.parametrize("folder", ["model", "outputs/quickstart/model"])
@pytest.mark.parametrize("model_type", ["rats", "dinov2_with_registers"])
def test_auto_backbone_asks_the_hub_for_a_local_folder(make_config, tmp_path, monkeypatch, model_type, folder):
    """The page says that it fails for every model. Once it does not, the page can say so."""
    asked = []
    hub = types.SimpleNamespace(repo_exists=lambda name: asked.append(name) or False)
    monkeypatch.setattr("transformers.models.auto.auto_factory.hf_api", lambda: hub)
    monkeypatch.chdir(tmp_path)
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
    config = make_config() if model_type == "rats" else Dinov2WithRegistersConfig(**tiny)
    AutoModel.from_config(config).save_pretrained(folder)
    with pytest.raises(Exception, match=r"(?i)timm|backbone"):
        AutoBackbone.from_pretrained(folder)
    assert asked == [folder]
    assert type(AutoBackbone.from_config(config)).__name__.endswith("Backbone")


FRAMEWORKS = {
    "Mask2Former": lambda backbone: transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=4,
            dim_feedforward=16,
        )
    ),
    "MaskFormer": lambda backbone: transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=backbone, fpn_feature_size=32, mask_feature_size=32, decoder_config=detr(backbone)
        )
    ),
    "UPerNet": lambda backbone: transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=backbone, hidden_size=16, use_auxiliary_head=False)
    ),
    "DETR": lambda backbone: transformers.DetrForObjectDetection(detr(backbone)),
}


def detr(backbone):
    sizes = {f"{part}_{size}": 4 for part in ("encoder", "decoder") for size in ("ffn_dim", "attention_heads")}
    return transformers.DetrConfig(backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=1, **sizes)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_frameworks_of_the_page_run_on_the_backbone(name, make_config, tmp_path):
    assert name in PAGE.read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = FRAMEWORKS[name](make_config(num_hidden_layers=4, out_indices=[1, 2, 3, 4])).eval()
    images = torch.randn(2, 3, 32, 32)
    outputs = model(pixel_values=images)
    outputs[0].sin().sum().backward()
    (backbone,) = [module for module in model.modules() if isinstance(module, RatsBackbone)]
    assert backbone.rats.embeddings.register_tokens.grad.abs().sum() > 0
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))  # the page: such a folder holds no code
    loaded = type(model).from_pretrained(tmp_path).eval()(pixel_values=images)
    torch.testing.assert_close(loaded[0], outputs[0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_flex_attention_agrees_on_the_cpu(make_config):
    """Measured: 2.3e-6 apart. Compiles with a C++ compiler."""
    torch.compiler.reset()
    model, images = RatsModel(make_config(initializer_range=0.2)).eval(), torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        expected = model(images).last_hidden_state
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(images).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "row", re.findall(r"^\| RATS-([SB])/16.*?\| ([\d.]+) \| ([\d.]+) \| (\d+) px \|$", PAGE.read_text(), re.M)
)
def test_the_costs_of_the_page_are_counted(row):
    size, at_96, at_224, even = row

    def ratio(side):
        rats, vit = (multiply_accumulates(ARCHITECTURES[f"{kind}-{size.lower()}"], side) for kind in ("rats", "vit"))
        return rats / vit

    assert (f"{ratio(96):.2f}", f"{ratio(224):.2f}") == (at_96, at_224)
    assert min(range(16, 1024, 16), key=lambda side: abs(ratio(side) - 1)) == int(even)


def test_all_costs_of_the_page_are_looked_at():
    assert len(re.findall(r"^\| RATS-[SB]/16", PAGE.read_text(), re.M)) == 2


# Docstrings


def public_docstrings():
    """Docstrings of every public class and function of the library, and of the methods that its classes define."""
    found = {}
    for path in sorted((ROOT / "modeling_rats").glob("*.py")):
        module = importlib.import_module(f"modeling_rats.{path.stem}".removesuffix(".__init__"))
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[name] = value.__doc__ or ""
            for owner in value.__mro__ if inspect.isclass(value) else ():
                for member in vars(owner) if owner.__module__.startswith("modeling_rats") else ():
                    method = getattr(value, member)
                    if inspect.isroutine(method) and (member == "__call__" or not member.startswith("_")):
                        found[f"{name}.{member}"] = method.__doc__ or ""
    return found


DOCSTRINGS = public_docstrings()
EXAMPLES = {name: text for name, text in DOCSTRINGS.items() if ">>>" in text}


def test_the_examples_are_found():
    assert {"RatsConfig", "RatsModel.forward", "RatsBackbone.forward", "PartSegmentationPipeline"} <= EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_docstrings_run(name, make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = RatsForPartSegmentation(make_config(initializer_range=0.2))
    with torch.no_grad():  # a model that sees register 5 everywhere
        for parameter in model.rats.encoder.parameters():
            parameter.zero_()
        model.rats.embeddings.patch_embeddings.bias.copy_(model.rats.embeddings.register_tokens[0, 5] * 100)
    model.save_pretrained("path/or/name")
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained("path/or/name")
    Image.new("RGB", (640, 480), "red").save("bird.jpg")
    runner, told = doctest.DocTestRunner(), io.StringIO()
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, None, 0)
    assert runner.run(example, out=told.write).failed == 0, told.getvalue()


PLACEHOLDERS = re.compile(r"None Model|\[`None`\]|of a None|a None |image_processor_class|\{\w+_class\}|\{model_name\}")


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_docstrings_have_no_unfilled_placeholders(name):
    """auto_docstring of transformers fills them by looking up the model in the library, where ours is not."""
    assert not PLACEHOLDERS.findall(DOCSTRINGS[name])


# Links


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.name)
def test_links_images_and_anchors_exist(document):
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings], (
                target
            )


# The API section


def test_the_api_section_is_that_of_the_code():
    assert written_api() == api(), "run `python -m docs.write_api`, which writes it anew"
