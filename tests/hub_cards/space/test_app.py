"""What the app reads from its environment, and what it says when it cannot start."""

import json
import shutil

import pytest

from hub_cards.demo import CHECKPOINT, SPACE

pytest.importorskip("gradio")


@pytest.fixture
def app(monkeypatch):
    import app

    for name in ("MODEL", "REVISION", "DICTIONARY", "EXAMPLES"):
        monkeypatch.delenv(f"RATS_{name}", raising=False)
    return app


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "RATS_MODEL is not set"),
        ({"MODEL": "{tmp}"}, "The demo cannot start"),
        ({"MODEL": "{checkpoint}", "EXAMPLES": "{tmp}"}, r"folder of example pictures .* holds none"),
        ({"MODEL": "{checkpoint}", "EXAMPLES": "{tmp}/no"}, r"folder of example pictures .* holds none"),
        ({"MODEL": "{checkpoint}", "DICTIONARY": "{tmp}"}, r"holds no part_dictionary\.json"),
    ],
)
def test_what_keeps_it_from_starting_is_told(app, tmp_path, monkeypatch, settings, message):
    for name, value in settings.items():
        monkeypatch.setenv(f"RATS_{name}", value.format(tmp=tmp_path, checkpoint=CHECKPOINT))
    with pytest.raises(SystemExit, match=message):
        app.main()


def test_a_picture_among_the_examples_that_cannot_be_read_is_told(app, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("no picture")
    monkeypatch.setenv("RATS_MODEL", str(CHECKPOINT))
    monkeypatch.setenv("RATS_EXAMPLES", str(tmp_path))
    with pytest.raises(SystemExit, match="This is no JPEG"):
        app.main()


def test_the_dictionary_is_the_models_own_another_or_none(app, tmp_path):
    examples = app.find_examples(SPACE / "examples")[:1]
    own = app.load_viewer(str(CHECKPOINT), "main", None, examples)
    assert len(own.dictionary) > 3
    shutil.copytree(CHECKPOINT, tmp_path / "model", ignore=shutil.ignore_patterns("dictionary"))
    assert app.load_viewer(str(tmp_path / "model"), "main", None, examples).dictionary is None
    other = app.load_viewer(str(tmp_path / "model"), "main", str(CHECKPOINT / "dictionary"), examples)
    assert other.dictionary.names == own.dictionary.names


def test_no_code_and_no_pickles_of_a_model_are_run(app, tmp_path):
    """A folder whose configuration names code of its own, and one whose weights are a pickle."""
    model = tmp_path / "model"
    shutil.copytree(CHECKPOINT, model)
    (model / "modeling_rats.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    config = json.loads((model / "config.json").read_text())
    assert config["auto_map"]["AutoModelForImageSegmentation"].startswith("modeling_rats.")
    app.load_viewer(str(model), "main", None, app.find_examples(SPACE / "examples")[:1])
    assert not (tmp_path / "run").exists()
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        app.load_viewer(str(model), "main", None, [])


def test_the_examples_are_rendered_ones_of_this_project():
    import numpy as np
    from PIL import Image

    from evaluation.synthetic_parts import render

    pictures = sorted((SPACE / "examples").glob("*.png"))
    assert len(pictures) == 12
    for path in pictures:
        number = int(path.stem.split("_")[1])
        assert np.array_equal(np.asarray(Image.open(path)), render(11, number, 128, "colours").image)
