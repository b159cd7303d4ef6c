"""The files of a Space lie side by side and import one another so; here they do, too."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub.utils import httpx
from PIL import Image

from hub_cards.demo import CHECKPOINT, SPACE

ROOT = Path(__file__).resolve().parents[3]

if str(SPACE) not in sys.path:
    sys.path.insert(0, str(SPACE))


@pytest.fixture(scope="session")
def viewer():
    """The project's checkpoint with its dictionary and the rendered example pictures."""
    pytest.importorskip("gradio")
    from app import load_viewer

    return load_viewer(str(CHECKPOINT), "main", None, sorted((SPACE / "examples").glob("*.png")))


@pytest.fixture(scope="session")
def bird():
    return Image.open(SPACE / "examples" / "bird_03.png").convert("RGB")


@dataclass(frozen=True)
class Server:
    """The demo, started as a user starts it; `log` is what it has printed."""

    url: str
    process: subprocess.Popen
    log_path: Path

    @property
    def log(self):
        return self.log_path.read_text()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    command = [sys.executable, "-m", "hub_cards.demo", "--port", str(port)]
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    running = Server(f"http://127.0.0.1:{port}/", process, folder / "log.txt")
    try:
        _wait_for(running)
        yield running
    finally:
        process.terminate()
        time.sleep(0.5)
        process.terminate()  # a second one changes nothing
        process.wait(timeout=60)
    assert not list((folder / "tmp").glob("rats-demo-*"))  # visitors' files are gone


def _wait_for(server):
    for _ in range(600):
        assert server.process.poll() is None, server.log
        try:
            if httpx.get(server.url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"The demo did not start: {server.log}")
