"""What the commands, a user and a stranger do, each in a process of its own, with a Hub on this machine."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Loads everything by its name on the Hub, where this package is not; prints what it got.
BY_A_STRANGER = """
import base64, importlib.util, io, json, sys
import torch
from huggingface_hub import snapshot_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

assert importlib.util.find_spec("modeling_rats") is None, "the package must not be found"
name, photo = sys.argv[1:]
image = Image.open(photo)
processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
inputs = processor(images=image, return_tensors="pt")
with torch.no_grad():
    features = AutoModel.from_pretrained(name, trust_remote_code=True).eval()(**inputs).pooler_output
    similarities = AutoModelForSemanticSegmentation.from_pretrained(name, trust_remote_code=True).eval()(**inputs).similarities
parts = pipeline("part-segmentation", model=name, trust_remote_code=True)(image)

folder = snapshot_download(name)
specification = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
handler = importlib.util.module_from_spec(specification)
specification.loader.exec_module(handler)
answers = handler.EndpointHandler(folder)({"inputs": base64.b64encode(open(photo, "rb").read()).decode()})
assert [answer["label"] for answer in answers] == [part["label"] for part in parts]
print(json.dumps([features.sum().item(), similarities.sum().item(), [part["area"] for part in parts]]))
"""

BY_A_USER = """
import json, sys
import torch
import modeling_rats
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, pipeline

name, photo = sys.argv[1:]
image = Image.open(photo)
inputs = AutoImageProcessor.from_pretrained(name)(images=image, return_tensors="pt")
with torch.no_grad():
    features = AutoModel.from_pretrained(name).eval()(**inputs).pooler_output
    similarities = AutoModelForSemanticSegmentation.from_pretrained(name).eval()(**inputs).similarities
parts = pipeline("part-segmentation", model=name)(image)
print(json.dumps([features.sum().item(), similarities.sum().item(), [part["area"] for part in parts]]))
"""


def in_a_new_process(hub, arguments, home, **environment):
    """Runs a command whose home is this folder, and gives what it prints."""
    inherited = os.environ | hub.environment(home) | {"CUDA_VISIBLE_DEVICES": ""} | environment
    ended = subprocess.run([*map(str, arguments)], cwd=ROOT, env=inherited, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def what_a_user_gets(hub, name, photo, folder):
    """Sums of features and similarities, and the areas of the parts, by the package."""
    return json.loads(in_a_new_process(hub, [sys.executable, "-c", BY_A_USER, name, photo], folder / "user").splitlines()[-1])


def what_a_stranger_gets(hub, name, photo, folder):
    """The same without the package, and by the handler, too."""
    (folder / "stranger").mkdir(exist_ok=True)
    (folder / "stranger.py").write_text(BY_A_STRANGER)
    libraries = os.pathsep.join({sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")})  # no .pth file is read
    stranger = [sys._base_executable, folder / "stranger.py", name, photo]  # type: ignore[attr-defined]
    return json.loads(in_a_new_process(hub, stranger, folder / "stranger", PYTHONPATH=libraries).splitlines()[-1])
