"""What an installation brings: the library alone in the wheel, the whole project in the source distribution."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_library_alone(built):
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"modeling_rats"}
    files = {path.name for path in (ROOT / "modeling_rats").iterdir() if path.is_file()}
    assert files == {name.split("/")[1] for name in names if name.startswith("modeling_rats/")}


def test_the_source_distribution_holds_the_project(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in ("training/pretrain.py", "training/recipes/quickstart.yaml", "Makefile", "LICENSE"):
        assert path in names
    assert {"hub_cards/model_card.md", "hub_cards/segmentation_card.md", "hub_cards/sections/results.md"} <= names
    assert "checkpoints/rats-tiny-synthetic/model.safetensors" in names
    assert not any(name.endswith((".parquet", ".pyc")) for name in names)
