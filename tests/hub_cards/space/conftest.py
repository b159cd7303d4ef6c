"""The files of a Space lie side by side and import one another so; here they do, too."""

import sys

import pytest
from PIL import Image

from hub_cards.demo import CHECKPOINT, SPACE

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
