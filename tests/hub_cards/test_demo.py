"""The command that starts the demo hands its options to the app as a Space does."""

import os

import pytest

from hub_cards import demo


@pytest.fixture
def started(monkeypatch):
    """What the app would find, in place of running it."""
    found = {}
    monkeypatch.setattr(demo, "find_spec", lambda name: True)
    monkeypatch.setattr(demo.sys, "path", list(demo.sys.path))
    monkeypatch.setattr(demo.os, "environ", dict(os.environ))
    monkeypatch.setattr(demo.runpy, "run_path", lambda path, run_name: found.update(demo.os.environ, path=path, name=run_name))
    return found


def test_by_default_it_shows_the_tiny_model_to_this_machine_alone(started):
    demo.main([])
    assert started["RATS_MODEL"] == str(demo.CHECKPOINT) and (demo.CHECKPOINT / "config.json").is_file()
    assert started["GRADIO_SERVER_NAME"] == "127.0.0.1" and started["GRADIO_SERVER_PORT"] == "7860"
    assert started["path"].endswith("app.py") and started["name"] == "__main__" and "RATS_EXAMPLES" not in started


def test_options_become_settings(started, tmp_path):
    demo.main(
        ["--model", "me/rats", "--revision", "v1", "--dictionary", "me/parts", "--examples", str(tmp_path), "--port", "1"]
    )
    settings = [started[f"RATS_{name}"] for name in ("MODEL", "REVISION", "DICTIONARY", "EXAMPLES")]
    assert settings == ["me/rats", "v1", "me/parts", str(tmp_path)] and started["GRADIO_SERVER_PORT"] == "1"


def test_without_gradio_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install \"\.\[demo\]\""):
        demo.main([])
