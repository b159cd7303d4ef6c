"""The common tests that transformers runs on its own models, run on RATS. They come from its source distribution."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers

TESTERS = Path(__file__).parent / "transformers_common" / "rats_testers.py"

# What the common tests import and the source distribution lacks.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": """
config_common_kwargs = {
    "return_dict": False, "output_hidden_states": True, "output_attentions": True, "dtype": "float16",
    "chunk_size_feed_forward": 5, "architectures": ["RatsModel"], "id2label": {0: "label"}, "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
}
# In place of a download: an image made here.
DOWNLOADS = """
import tempfile
from pathlib import Path
import numpy as np
from PIL import Image
def url_to_local_path(url):
    path = Path(tempfile.mkdtemp()) / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((640, 480), Image.BICUBIC).save(path)
    return str(path)
"""

# Why a common test may be skipped. Nothing here is a capability that a vision model of transformers has and RATS lacks.
ALLOWED_SKIPS = [
    r"test requires (accelerator|multiple accelerators|Flash Attention( \d)?|MPS|the kernels library|deepspeed)",  # machine
    r"test is slow|test requires (a )?GPU|test requires torch GPU",
    r"not a composite model|This model is not composite|No subconfigs",
    r"^test_sdpa_can_dispatch_composite_models: \w+ does not support SDPA$",  # its words for: is not composite
    r"No (sequence-to-sequence|decoder-only) language modeling head",
    r"does not support grouped_mm|no sparse experts|no `output_router_logits`",  # mixtures of experts
    r"doesn't use `inputs_embeds`|test_resize_embeddings is set to `False`",  # text
    r"Model does not support sliding window mask|RoPE|no `base_model_class` defined in tester",  # windows, rotary positions
    r"Model does not have position embeddings",  # tables of text; ours are interpolated, as those of every ViT
    r"No conversion found",  # nothing to convert
    r"[Nn]o `?_keep_in_fp32_modules",  # nothing kept in float32
    r"Do not take a cache as input to forward",  # keys and values of text that is generated
    r"Model does not have a TP plan",  # nor do ViT, DINOv2 and DINOv3
    r"No validation found for `preprocess` method",
    r"does not have dict size or list image_mean attributes",  # a size is a SizeDict, as in ViT's
    # Mask2Former, too, has three kinds of hidden states with names of their own, and these decoder layers.
    r"^test_can_capture_specific_layers_hidden_states: RatsForUniversalSegmentation .* uses another name$",
    r"Mask2Former's decoder layers take the feature maps as a list, which reentrant checkpoints do not follow",
]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> ElementTree.Element:
    """The JUnit report of one run over all testers."""
    tree = tmp_path_factory.mktemp("transformers")
    unpack_common_tests(tree)
    (tree / "tests/models/rats").mkdir(parents=True)
    for folder in ("tests", "tests/models", "tests/models/rats", *(f"tests/{Path(stub).parent}" for stub in STUBS)):
        (tree / folder).mkdir(exist_ok=True)
        (tree / folder / "__init__.py").touch()
    for name, content in STUBS.items():
        (tree / "tests" / name).write_text(content)
    (tree / "utils").mkdir()
    (tree / "utils/fetch_hub_objects_for_ci.py").write_text(DOWNLOADS)
    (tree / "tests/models/rats/test_rats.py").write_text(TESTERS.read_text())
    environment = os.environ | {"RUN_SLOW": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    command = [
        sys.executable, "-m", "pytest", "tests/models/rats", "-q", "-W", "ignore", "-p", "no:cacheprovider",
        f"--junitxml={tree / 'report.xml'}", "--rootdir", str(tree), "-c", os.devnull,
        # It starts a process that does not import this package; our tests of the PIL processor do the same with it.
        "--deselect", "tests/models/rats/test_rats.py::RatsImageProcessingTest::test_pil_can_run_without_torchvision",
    ]  # fmt: skip
    finished = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert (tree / "report.xml").exists(), finished.stdout + finished.stderr
    return ElementTree.parse(tree / "report.xml").getroot()


def unpack_common_tests(folder: Path) -> None:
    """The folder tests/ of the source distribution of the installed version."""
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(folder), requirement]
    downloaded = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if not archives:
        pytest.skip(f"{' '.join(command[2:])} gave no source distribution: {downloaded.stderr.strip()[-300:]}")
    with tarfile.open(archives[0]) as archive:
        for member in archive.getmembers():
            _, _, path = member.name.partition("/")
            if member.isfile() and re.fullmatch(r"tests/\w+\.py", path):
                target = folder / path
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())


@pytest.mark.slow
def test_no_common_test_fails(report):
    cases = list(report.iter("testcase"))
    bad = {case.get("name"): child.get("message") for case in cases for child in case if child.tag in ("failure", "error")}
    assert not bad, "\n".join(f"{name}: {message}" for name, message in bad.items())
    passed = [case for case in cases if not len(case)]
    assert len(passed) > 120


@pytest.mark.slow
def test_no_common_test_is_skipped_for_a_capability_that_rats_lacks(report):
    reasons = {
        f"{case.get('name')}: {skip.get('message')}" for case in report.iter("testcase") for skip in case.iter("skipped")
    }
    unexpected = {reason for reason in reasons if not any(re.search(allowed, reason) for allowed in ALLOWED_SKIPS)}
    assert reasons and not unexpected, unexpected
