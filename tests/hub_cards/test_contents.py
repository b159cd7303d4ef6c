"""What a repository gets that the folder has not: code, tables of code, and what endpoints install."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from PIL import Image

from hub_cards.contents import gather, requirements
from hub_cards.records import read_model
from modeling_rats.remote_code import AUTO_MAP, UNIVERSAL_SEGMENTATION_AUTO_MAP
from tests.hub_cards.conftest import LABELS


def without_code(folder, edit_json):
    for file in folder.glob("*.py"):
        file.unlink()
    edit_json(folder / "config.json", auto_map=None, custom_pipelines=None)
    return gather(folder, read_model(folder))


def test_a_folder_without_code_gets_what_saving_would_have_laid_there(model_folder, segmenter, edit_json):
    for folder, table in ((model_folder, AUTO_MAP), (segmenter, UNIVERSAL_SEGMENTATION_AUTO_MAP)):
        saved = {file.name: file.read_bytes() for file in folder.glob("*.py")}
        gathered = without_code(folder, edit_json)
        assert {path: content for path, content in gathered.items() if path.endswith(".py") and path != "handler.py"} == saved
        assert json.loads(gathered["config.json"])["auto_map"] == table
    assert "custom_pipelines" not in json.loads(gathered["config.json"])


def test_endpoints_install_scipy_for_what_is_made_of_mask2former(model_folder, segmenter):
    backbone, fine_tuned = (requirements(read_model(folder)).splitlines() for folder in (model_folder, segmenter))
    assert "scipy" not in " ".join(backbone) and any(line.startswith("transformers") for line in backbone)
    assert [line for line in fine_tuned if line not in backbone] == ["scipy>=1.11"]


BY_A_STRANGER = """
import importlib.util, json, sys
from PIL import Image
assert importlib.util.find_spec("modeling_rats") is None, "the package must not be found"
folder, photo = sys.argv[1:]
specification = importlib.util.spec_from_file_location("handler", folder + "/handler.py")
handler = importlib.util.module_from_spec(specification)
specification.loader.exec_module(handler)
answer = handler.EndpointHandler(folder)({"inputs": Image.open(photo)})
print(json.dumps([segment["label"] for segment in answer]))
"""


def test_a_repository_serves_an_endpoint_without_the_package(segmenter, edit_json, tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    for path, content in without_code(segmenter, edit_json).items():
        (repository / path).write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
    Image.new("RGB", (60, 40), "red").save(tmp_path / "photo.png")
    (tmp_path / "stranger.py").write_text(BY_A_STRANGER)
    libraries = os.pathsep.join({sysconfig.get_paths()[kind] for kind in ("purelib", "platlib")})  # no .pth file is read
    command = [sys._base_executable, str(tmp_path / "stranger.py"), str(repository), str(tmp_path / "photo.png")]
    environment = os.environ | {"PYTHONPATH": libraries, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert {*json.loads(ended.stdout.splitlines()[-1])} <= {*LABELS}
