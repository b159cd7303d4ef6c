"""A figure for print: the right pictures in the right rows, in formats that print."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.part_figure import draw_figure
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.image_parts import look


@pytest.fixture(scope="module")
def looked(make_config):
    torch.manual_seed(0)
    model = RatsForPartSegmentation(make_config(initializer_range=0.5)).eval()
    processor = RatsImageProcessor(size={"height": 32, "width": 32})
    images = [Image.effect_noise(size, 90).convert("RGB") for size in ((60, 40), (40, 60), (50, 50))]
    return [look(image, model, processor) for image in images]


def rows_of(path):
    return re.findall(r">(image|parts|register \d+)<", path.read_text())


def test_rows_are_the_image_its_parts_and_the_registers_of_most_pixels(looked, tmp_path):
    draw_figure(looked, tmp_path / "figure.svg", most=3)
    shares = torch.stack([torch.bincount(one.segment()["segmentation"].flatten(), minlength=8) / 2400 for one in looked])
    shares[2] *= 2400 / 2500
    most = shares.sum(dim=0).argsort(descending=True, stable=True)[:3].tolist()
    assert rows_of(tmp_path / "figure.svg") == ["image", "parts", *[f"register {number}" for number in most]]
    assert (tmp_path / "figure.svg").read_text().count("<image") == 5 * 3


def test_registers_are_those_that_are_named(looked, tmp_path):
    draw_figure(looked, tmp_path / "figure.svg", registers=[7, 0])
    assert rows_of(tmp_path / "figure.svg") == ["image", "parts", "register 7", "register 0"]


def test_it_is_a_pdf_with_text_or_a_png_of_300_dpi(looked, tmp_path):
    draw_figure(looked, tmp_path / "figure.pdf")
    draw_figure(looked, tmp_path / "figure.png", registers=[1])
    content = (tmp_path / "figure.pdf").read_bytes()
    assert content.startswith(b"%PDF") and b"/Type3" not in content  # journals refuse such fonts
    picture = Image.open(tmp_path / "figure.png")
    assert picture.size == (round(300 * 3.6), round(300 * 3.3)) and np.asarray(picture.convert("RGB")).std() > 20
    assert {path.name for path in tmp_path.iterdir()} == {"figure.pdf", "figure.png"}


def test_what_makes_no_figure_is_told(looked, tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.pdf, \.svg or \.png file"):
        draw_figure(looked, tmp_path / "figure.jpg")
    with pytest.raises(ValueError, match="no image"):
        draw_figure([], tmp_path / "figure.pdf")
