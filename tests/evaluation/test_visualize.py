"""Pictures of part maps from files and from data sets."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.visualize import GALLERY, VIDEO, main
from modeling_rats import RatsForPartSegmentation, RatsImageProcessor


@pytest.fixture(scope="module")
def model_folder(make_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    RatsForPartSegmentation(make_config()).save_pretrained(folder)
    RatsImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_files_are_drawn_beside_their_part_maps(model_folder, tmp_path):
    image = Image.effect_noise((60, 40), 50)
    image.save(tmp_path / "a.png")
    (path,) = main([str(tmp_path / "a.png"), "--model", model_folder, "--output", str(tmp_path / "out")])
    picture = Image.open(path)
    assert path.name == "a.png" and picture.width > 2 * 60 and picture.height > 40
    assert picture.convert("HSV").getextrema()[1][1] > 100  # a grey image, so what has colour is the part map


def test_a_data_set_is_drawn_up_to_the_number_asked_for(model_folder, tmp_path):
    rows = {"image": [Image.effect_noise((32, 32), 50) for _ in range(3)]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    arguments = ["--dataset", str(tmp_path / "data"), "--num_pictures", "2", "--model", model_folder]
    assert len(main([*arguments, "--output", str(tmp_path / "out")])) == 2


def test_registers_are_drawn_over_all_images_a_row_each(model_folder, tmp_path):
    for name in ("a", "b", "c"):
        Image.effect_noise((64, 32), 50).save(tmp_path / f"{name}.png")
    files = [str(tmp_path / f"{name}.png") for name in ("a", "b", "c")]
    arguments = [*files, "--model", model_folder, "--output", str(tmp_path / "out"), "--part_similarity", "claimed_patches"]
    assert len(main(arguments)) == 3 and not (tmp_path / "out" / GALLERY).exists()
    some = main([*arguments, "--registers", "5", "0"])[-1]
    every = main([*arguments, "--registers"])[-1]
    assert some.name == every.name == GALLERY
    with pytest.raises(SystemExit):
        main([*arguments, "--registers", "8"])


def test_figure_video_and_numbers_come_with_the_part_maps(model_folder, tmp_path):
    Image.effect_noise((64, 48), 90).save(tmp_path / "a.png")
    arguments = [str(tmp_path / "a.png"), "--model", model_folder, "--output"]
    (plain,) = main([*arguments, str(tmp_path / "plain")])
    more = ["--numbers", "--figure", "figure.pdf", "--video", model_folder, model_folder, "--image_size", "64"]
    paths = main([*arguments, str(tmp_path / "out"), *more])
    assert [path.name for path in paths] == ["a.png", "figure.pdf", VIDEO] and all(path.is_file() for path in paths)
    assert Image.open(paths[2]).n_frames == 1  # the same twice is one longer
    assert (np.asarray(Image.open(paths[0])) == 0).sum() > (np.asarray(Image.open(plain)) == 0).sum()  # numbers have outlines


@pytest.mark.parametrize(
    "option, message",
    [
        (["--figure", "b.jpg"], "must be the name of a .pdf, .svg, .png file"),
        (["--figure", "../b.pdf"], "must be the name of a"),
        (["--figure", "a.png"], "would have the same name"),
        (["--video", "outputs/no/model"], "outputs/no/model"),  # three names, which the Hub is not asked for
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_is(model_folder, tmp_path, capsys, option, message):
    Image.effect_noise((64, 48), 90).save(tmp_path / "a.png")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "a.png"), "--model", model_folder, "--out", str(tmp_path / "out"), *option])
    assert message in capsys.readouterr().err + str(stopped.value) and not (tmp_path / "out").exists()


def test_an_image_called_like_the_gallery_is_refused(model_folder, tmp_path, capsys):
    Image.effect_noise((64, 48), 90).save(tmp_path / "registers.jpg")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "registers.jpg"), "--model", model_folder, "--output", str(tmp_path), "--registers"])
    assert "would have the same name" in capsys.readouterr().err


def test_bad_requests_are_told(model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--model", model_folder, "--output", str(tmp_path)])
    assert "image files or a --dataset" in capsys.readouterr().err
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SystemExit, match=r"text\.png is no image"):
        main([str(tmp_path / "text.png"), "--model", model_folder, "--output", str(tmp_path)])
