"""A saved folder without the package: the same numbers through `trust_remote_code=True`, and no question with the package."""

import importlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from modeling_rats import (
    RatsBackbone,
    RatsForImageClassification,
    RatsForPartSegmentation,
    RatsForPreTraining,
    RatsForUniversalSegmentation,
    RatsImageProcessor,
    RatsImageProcessorPil,
    RatsModel,
    RatsUniversalSegmentationConfig,
)
from modeling_rats.remote_code import AUTO_MAP, CUSTOM_PIPELINES, UNIVERSAL_SEGMENTATION_AUTO_MAP

CLASSES = {
    "AutoModel": RatsModel,
    "AutoBackbone": RatsBackbone,
    "AutoModelForPreTraining": RatsForPreTraining,
    "AutoModelForImageClassification": RatsForImageClassification,
    "AutoModelForSemanticSegmentation": RatsForPartSegmentation,
    "AutoModelForImageSegmentation": RatsForPartSegmentation,
}

# Runs in a process that has every library, but not this package; argv: the work folder, the saved folder.
WITHOUT_THE_PACKAGE = """
import importlib.util, json, sys
from pathlib import Path
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, pipeline

assert importlib.util.find_spec("modeling_rats") is None, "the package must not be found"

def no_pickle(*args, **kwargs):
    raise AssertionError("something was unpickled")
torch.load = no_pickle

work, folder = Path(sys.argv[1]), sys.argv[2]
images = torch.from_numpy(np.load(work / "images.npy"))
results = {}
for name in json.loads((work / "classes.json").read_text()):
    auto = getattr(transformers, name)
    torch.manual_seed(0)  # heads that the folder lacks are drawn
    if name == "AutoBackbone":  # its from_pretrained fails for every local folder (transformers 5.23)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        backbone = auto.from_config(config, trust_remote_code=True)
        model = type(backbone).from_pretrained(folder, config=config)
    else:
        model = auto.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    with torch.no_grad():
        first = model.eval()(images)[0]
    results[name] = (first[0] if isinstance(first, tuple) else first).numpy()
    model.save_pretrained(work / "again" / name)

photo = Image.open(work / "photo.png")
for backend in ("torchvision", "pil"):
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend=backend)
    assert type(processor).__module__.startswith("transformers_modules.")
    results[backend] = processor(photo, return_tensors="np")["pixel_values"]
    processor.save_pretrained(work / "again" / "AutoModel")

segmenter = pipeline("part-segmentation", model=folder, trust_remote_code=True)
parts = segmenter(photo)
results["masks"] = np.stack([np.asarray(part["mask"]) for part in parts])
results["scores"] = np.array([part["score"] for part in parts])
segmenter.save_pretrained(work / "again" / "pipeline")
again = pipeline("part-segmentation", model=str(work / "again" / "pipeline"), trust_remote_code=True)(photo)
assert [part["score"] for part in again] == [part["score"] for part in parts]
again = pipeline("image-feature-extraction", model=str(work / "again" / "AutoModel"), trust_remote_code=True, pool=True)(photo)
assert len(again[0]) == 32
np.savez(work / "results.npz", **results)
"""


UNIVERSAL = ["AutoModelForUniversalSegmentation", "AutoModelForImageSegmentation"]

# As above; argv: the work folder, and as many saved folders as one likes.
UNIVERSAL_WITHOUT_THE_PACKAGE = """
import importlib.util, sys
from pathlib import Path
import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, pipeline
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

assert importlib.util.find_spec("modeling_rats") is None, "the package must not be found"
work, *folders = sys.argv[1:]
images, photo, results = torch.from_numpy(np.load(work + "/images.npy")), Image.open(work + "/photo.png"), {}
for folder in folders:
    for name in ("AutoModelForUniversalSegmentation", "AutoModelForImageSegmentation"):
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
        for loaded in (model, model.config, model.model.encoder, model.config.backbone_config):
            assert type(loaded).__module__.startswith("transformers_modules."), type(loaded).__module__
        assert "rats" not in CONFIG_MAPPING  # it knows the backbone by its class alone
        with torch.no_grad():
            outputs = model(images)
        logits = [outputs.masks_queries_logits.flatten(), outputs.class_queries_logits.flatten()]
        results[Path(folder).name + name] = torch.cat(logits)
        model.save_pretrained(Path(work, "again", Path(folder).name, name))
    assert type(AutoImageProcessor.from_pretrained(folder)).__module__.startswith("transformers.models.mask2former")
    segments = pipeline("image-segmentation", model=folder, trust_remote_code=True)(photo, subtask="semantic")
    assert segments and {segment["mask"].size for segment in segments} == {photo.size}
np.savez(work + "/results.npz", **results)
"""


def run_without_the_package(script: str, work: Path, *arguments: str) -> subprocess.CompletedProcess:
    """In a fresh interpreter: the libraries come by PYTHONPATH, where an editable installation's .pth file is not read."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join({sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")}),
        "HF_HOME": str(work / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums in the same order
    }
    (work / "script.py").write_text(script)
    command = [sys._base_executable, str(work / "script.py"), *arguments]  # type: ignore[attr-defined]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def saved(make_config, tmp_path):
    """A pretraining folder with its processor, as the training loop leaves it."""
    if any((Path(sysconfig.get_paths()["purelib"]) / name).exists() for name in ("modeling_rats", "modeling_rats.py")):
        pytest.skip("the package is installed into site-packages, so that no process can do without it")
    torch.manual_seed(0)
    folder = tmp_path / "saved"
    RatsForPreTraining(make_config(initializer_range=0.2)).save_pretrained(folder)
    RatsImageProcessor(size={"height": 32, "width": 48}).save_pretrained(folder)
    return folder


def test_a_process_without_the_package_computes_the_same_bits(saved, tmp_path):
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "images.npy", images.numpy())
    (tmp_path / "classes.json").write_text(json.dumps([*CLASSES]))
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    photo = Image.fromarray(noise)
    photo.save(tmp_path / "photo.png")

    finished = run_without_the_package(WITHOUT_THE_PACKAGE, tmp_path, str(tmp_path), str(saved))
    assert finished.returncode == 0, finished.stderr
    results = np.load(tmp_path / "results.npz")
    for name, model_class in CLASSES.items():
        torch.manual_seed(0)
        model = model_class.from_pretrained(saved).eval()
        with torch.no_grad():
            first = model(images)[0]
        assert np.array_equal(results[name], (first[0] if isinstance(first, tuple) else first).numpy()), name
        # What such a process saves can be loaded with and without the package.
        for key, tensor in model_class.from_pretrained(tmp_path / "again" / name).state_dict().items():
            assert torch.equal(tensor, model.state_dict()[key]), key
        assert json.loads((tmp_path / "again" / name / "config.json").read_text())["auto_map"] == AUTO_MAP
    for backend, processor_class in (("torchvision", RatsImageProcessor), ("pil", RatsImageProcessorPil)):
        processor = processor_class.from_pretrained(saved)
        assert np.array_equal(results[backend], processor(photo, return_tensors="np")["pixel_values"])
    parts = transformers.pipeline("part-segmentation", model=str(saved))(photo)
    assert np.array_equal(results["masks"], np.stack([np.asarray(part["mask"]) for part in parts]))
    assert np.array_equal(results["scores"], [part["score"] for part in parts])


@pytest.fixture
def saved_universal(saved, make_config):
    """Folders of both heads, with the processor, as fine-tuning leaves them."""
    sizes = {
        "feature_size": 32,
        "mask_feature_size": 16,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 16,
        "dim_feedforward": 16,
    }
    sizes |= {"encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 4, "num_labels": 3}
    folders = []
    for head in ("mask2former", "encoder_only"):
        config = RatsUniversalSegmentationConfig(
            backbone_config=make_config(initializer_range=0.2), segmentation_head=head, **sizes
        )
        folders.append(saved.parent / head)
        RatsForUniversalSegmentation(config).save_pretrained(folders[-1])
        transformers.Mask2FormerImageProcessor(size={"height": 32, "width": 48}, size_divisor=8).save_pretrained(folders[-1])
    return folders


def test_a_process_without_the_package_segments_by_the_same_bits(saved_universal, tmp_path):
    images = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "images.npy", images.numpy())
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")

    finished = run_without_the_package(UNIVERSAL_WITHOUT_THE_PACKAGE, tmp_path, str(tmp_path), *map(str, saved_universal))
    assert finished.returncode == 0, finished.stderr
    results = np.load(tmp_path / "results.npz")
    for folder in saved_universal:
        model = RatsForUniversalSegmentation.from_pretrained(folder).eval()
        with torch.no_grad():
            outputs = model(images)
        expected = torch.cat([outputs.masks_queries_logits.flatten(), outputs.class_queries_logits.flatten()])
        for name in UNIVERSAL:
            assert np.array_equal(results[folder.name + name], expected.numpy()), (folder.name, name)
            again = tmp_path / "again" / folder.name / name
            for key, tensor in RatsForUniversalSegmentation.from_pretrained(again).state_dict().items():
                assert torch.equal(tensor, model.state_dict()[key]), key
            config = json.loads((again / "config.json").read_text())
            assert config["auto_map"] == UNIVERSAL_SEGMENTATION_AUTO_MAP


def test_the_package_serves_universal_folders_without_a_question(saved_universal, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked whether to trust remote code"))
    for folder in saved_universal:
        files = {path.name for path in folder.iterdir()}
        assert {f"{reference.split('.')[0]}.py" for reference in UNIVERSAL_SEGMENTATION_AUTO_MAP.values()} <= files
        for name in UNIVERSAL:
            assert _resolve(UNIVERSAL_SEGMENTATION_AUTO_MAP[name]) is RatsForUniversalSegmentation
            for trust in (None, True, False):
                model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=trust)
                assert type(model) is RatsForUniversalSegmentation


def test_the_package_serves_its_folders_without_a_question(saved, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked whether to trust remote code"))
    for trust in (None, True, False):  # also where trust is given, the package's own classes are taken
        for name, model_class in CLASSES.items():
            auto = getattr(transformers, name)
            config = transformers.AutoConfig.from_pretrained(saved, trust_remote_code=trust)
            if name == "AutoBackbone":
                assert type(auto.from_config(config, trust_remote_code=trust)) is model_class
            else:
                assert type(auto.from_pretrained(saved, trust_remote_code=trust)) is model_class
        for backend, processor_class in (("torchvision", RatsImageProcessor), ("pil", RatsImageProcessorPil)):
            processor = transformers.AutoImageProcessor.from_pretrained(saved, trust_remote_code=trust, backend=backend)
            assert type(processor) is processor_class
        segmenter = transformers.pipeline("part-segmentation", model=str(saved), trust_remote_code=trust)
        assert type(segmenter.model) is RatsForPartSegmentation
        assert type(segmenter).__module__ == "modeling_rats.pipeline_rats"


def test_without_trust_no_code_of_the_folder_runs(saved, tmp_path):
    script = "import sys; from transformers import AutoModel; AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False)"
    finished = run_without_the_package(script, tmp_path, str(saved))
    assert finished.returncode != 0 and "trust_remote_code=True" in finished.stderr


def test_a_folder_holds_all_the_code_and_nothing_pickled(saved):
    code = {reference.split(".")[0] for references in AUTO_MAP.values() for reference in _as_list(references)}
    code |= {pipeline["impl"].split(".")[0] for pipeline in CUSTOM_PIPELINES.values()}
    files = {path.name for path in saved.iterdir()}
    assert {f"{name}.py" for name in code} <= files
    assert {path.suffix for path in saved.iterdir()} == {".json", ".py", ".safetensors"}
    library = Path(importlib.import_module("modeling_rats").__file__).parent
    for path in saved.glob("*.py"):
        assert path.read_text() == (library / path.name).read_text()


def test_the_tables_name_the_registered_classes(saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP and config["custom_pipelines"] == CUSTOM_PIPELINES
    assert {*CLASSES, "AutoConfig", "AutoImageProcessor"} == AUTO_MAP.keys()
    for name, model_class in CLASSES.items():
        assert _resolve(AUTO_MAP[name]) is model_class
    assert [_resolve(one) for one in AUTO_MAP["AutoImageProcessor"]] == [RatsImageProcessorPil, RatsImageProcessor]
    processor = json.loads((saved / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == {"AutoImageProcessor": AUTO_MAP["AutoImageProcessor"]}


def _as_list(references):
    return references if isinstance(references, list) else [references]


def _resolve(reference):
    module, name = reference.split(".")
    return getattr(importlib.import_module(f"modeling_rats.{module}"), name)


OWN_CODE = """
from modeling_rats import PartSegmentationPipeline, RatsModel
class Mine(RatsModel):
    pass
class Registered(RatsModel):
    pass
Registered.register_for_auto_class("AutoModel")
class MyPipeline(PartSegmentationPipeline):
    pass
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_code")
    sys.modules.pop("own_code")


def test_the_file_of_a_users_class_goes_with_it_only_if_registered(own_code, make_config, tmp_path):
    own_code.Mine(make_config()).save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine" / "own_code.py").exists()
    own_code.Registered(make_config()).save_pretrained(tmp_path / "registered")
    assert (tmp_path / "registered" / "own_code.py").exists()
    config = json.loads((tmp_path / "registered" / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP | {"AutoModel": "own_code.Registered"}


def test_a_users_pipeline_stays_in_the_folder(own_code, saved, tmp_path):
    registry = transformers.pipelines.PIPELINE_REGISTRY
    model_classes = (transformers.AutoModelForSemanticSegmentation,)
    registry.register_pipeline("my-parts", pipeline_class=own_code.MyPipeline, pt_model=model_classes, type="image")
    try:
        transformers.pipeline("my-parts", model=str(saved)).save_pretrained(tmp_path / "again")
    finally:
        registry.supported_tasks.pop("my-parts")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["custom_pipelines"].keys() == {"my-parts", "part-segmentation"}
    assert config["custom_pipelines"]["my-parts"]["impl"] == "own_code.MyPipeline"
