"""What arrives in a Space, with which settings, and what is refused: the real client against a server on this machine."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import RepoCard
from packaging.requirements import Requirement
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hub_cards.demo import SPACE
from hub_cards.push_space import SUFFIXES, gather_space, main, push_space
from hub_cards.repository import PushError

ROOT = Path(__file__).resolve().parents[2]
NAME, MODEL = "owner/rats-demo", "owner/rats"
SETTINGS = {"RATS_MODEL": MODEL, "RATS_REVISION": "main"}


def find_suffixes():
    """Those that the app looks for, read from its source: it imports gradio."""
    tree = ast.parse((SPACE / "app.py").read_text())
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "SUFFIXES"]
    return ast.literal_eval(value)


@pytest.fixture
def hub_with_model(hub):
    hub.add(MODEL, {"config.json": b"{}"})
    return hub


def test_a_space_arrives_whole_with_its_settings_and_a_second_push_changes_nothing(hub_with_model):
    pushed = push_space(NAME, MODEL, message="First try")
    repository = hub_with_model.repositories[f"spaces/{NAME}"]
    assert [commit.message for commit in repository.commits] == ["initial commit", "First try"]
    files = repository.head.files
    assert {
        "app.py",
        "demo_api.py",
        "demo_page.py",
        "part_viewer.py",
        "picture_upload.py",
        "requirements.txt",
        "README.md",
    } <= files.keys()
    assert "modeling_rats/__init__.py" in files and "examples/bird_03.png" in files
    assert not any("__pycache__" in path for path in files)
    assert hub_with_model.variables[NAME] == SETTINGS and hub_with_model.sdks[NAME] == "gradio"
    card = RepoCard(files["README.md"].decode())
    assert card.data.models == [MODEL] and card.data.sdk == "gradio" and card.data.app_file == "app.py"
    assert f'Client("{NAME}")' in card.text and "OWNER/NAME" not in card.text
    assert str(pushed).startswith(f"{len(files)} files changed: ") and f"spaces/{NAME}" in pushed.url
    before = len(hub_with_model.requests)
    assert str(push_space(NAME, MODEL)).startswith("Nothing to push") and len(repository.commits) == 2
    assert not [asked for asked in hub_with_model.requests[before:] if asked.startswith("POST /api/spaces")]


def test_a_space_with_its_own_examples_model_and_revision(hub_with_model, tmp_path):
    push_space(NAME, MODEL)
    repository = hub_with_model.repositories[f"spaces/{NAME}"]
    model = hub_with_model.repositories[MODEL]
    model.branches["v1"] = list(model.branches["main"])
    hub_with_model.commit_to(repository, {"notes.md": b"mine", "modeling_rats/old.py": b""})
    (tmp_path / "notes.txt").write_text("not to be sent")
    (tmp_path / "car.png").write_bytes((SPACE / "examples" / "car_06.png").read_bytes())
    push_space(NAME, MODEL, revision="v1", dictionary="owner/parts", examples=tmp_path)
    files = repository.head.files
    assert [path for path in files if path.startswith("examples/")] == ["examples/car.png"]
    assert find_suffixes() == SUFFIXES
    assert "notes.md" in files and "modeling_rats/old.py" not in files
    expected = SETTINGS | {"RATS_REVISION": "v1", "RATS_DICTIONARY": "owner/parts"}
    assert hub_with_model.variables[NAME] == expected
    push_space(NAME, MODEL)
    assert hub_with_model.variables[NAME] == SETTINGS


def test_what_is_pushed_runs_without_this_checkout(hub_with_model, tmp_path):
    """The app starts on the files of the Space alone, up to the model that is not set, in a process without this project."""
    pytest.importorskip("gradio")
    for path, content in gather_space(NAME, MODEL).items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    told = (
        "import sys, runpy; sys.path = [entry for entry in sys.path if 'editable' not in entry]; sys.meta_path = "
        "[one for one in sys.meta_path if 'editable' not in repr(one)]; sys.path.insert(0, '.'); import modeling_rats; "
        "print(modeling_rats.__file__); runpy.run_path('app.py', run_name='__main__')"
    )
    ran = subprocess.run([sys.executable, "-c", told], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == str(tmp_path / "modeling_rats" / "__init__.py")
    assert ran.returncode == 1 and "RATS_MODEL is not set" in ran.stderr


def test_the_app_imports_the_installed_library_and_its_own_files_alone():
    files = {path.stem for path in SPACE.glob("*.py")}
    for path in SPACE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"hub_cards", "evaluation", "training", "tests", "docs"}, f"{path.name} imports {roots}"
            unknown = (
                roots
                - files
                - {"modeling_rats", "gradio", "gradio_client", "starlette", "torch", "transformers", "PIL"}
                - sys.stdlib_module_names
            )
            assert not unknown, f"{path.name} imports {unknown}, which requirements.txt does not bring"


def test_pins_are_what_the_package_asks_for():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = f"{config['options']['install_requires']}\n{config['options.extras_require']['demo']}".splitlines()
    asked = {one.name: one.specifier for one in map(Requirement, filter(None, map(str.strip, lines)))}
    pins = [Requirement(line) for line in (SPACE / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    pinned = {one.name: next(iter(one.specifier)) for one in pins}
    card = yaml.safe_load((SPACE / "README.md").read_text().split("---")[1])
    versions = {name: pin.version for name, pin in pinned.items()} | {"gradio": card["sdk_version"]}
    assert all(pin.operator == "==" for pin in pinned.values()) and versions.keys() == asked.keys()
    assert not {name: version for name, version in versions.items() if version not in asked[name]}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": "owner/nothing"}, "There is no model owner/nothing on the Hub"),
        ({"revision": "v2"}, "Invalid rev id: v2"),
        ({"repo_id": "stranger/demo"}, "may not write to stranger/demo"),
    ],
)
def test_what_the_hub_refuses_is_told(hub_with_model, arguments, message):
    hub_with_model.add("spaces/stranger/demo", {})
    with pytest.raises(PushError, match=message):
        push_space(**({"repo_id": NAME, "model": MODEL} | arguments))
    assert f"spaces/{NAME}" not in hub_with_model.repositories


def test_what_cannot_be_pushed_leaves_no_space(hub_with_model, tmp_path):
    with pytest.raises(ValueError, match="must be named owner/name"):
        push_space("demo", MODEL)
    with pytest.raises(ValueError, match="must be named owner/name"):
        push_space(NAME, "rats")
    (tmp_path / "notes.txt").write_text("not to be sent")
    with pytest.raises(ValueError, match=r"holds no \.png, "):
        push_space(NAME, MODEL, examples=tmp_path)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png'\) cannot be read as an image"):
        push_space(NAME, MODEL, examples=tmp_path)
    picture = PngInfo()
    picture.add_text("comment", "token hf_" + "a" * 34)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=picture)
    with pytest.raises(ValueError, match=r"examples/a\.png holds what looks like a secret"):
        push_space(NAME, MODEL, examples=tmp_path)
    assert not [name for name in hub_with_model.repositories if name.startswith("spaces/")]


def test_a_private_space_is_made_private_and_a_public_one_refused(hub_with_model):
    push_space(NAME, MODEL, private=True)
    assert hub_with_model.repositories[f"spaces/{NAME}"].private
    hub_with_model.add("spaces/owner/public", {})
    with pytest.raises(PushError, match=r"spaces/owner/public/settings"):
        push_space("owner/public", MODEL, private=True)


def test_the_command_line_pushes_and_shows_what_it_would_push(hub_with_model, capsys):
    main(["--repo_id", NAME, "--model", MODEL, "--dry_run"])
    shown = capsys.readouterr().out
    assert (
        f"Variables: RATS_MODEL={MODEL}, RATS_REVISION=main" in shown
        and "which would be made" in shown
        and "add app.py" in shown
        and f"+- {MODEL}" in shown
    )
    assert f"spaces/{NAME}" not in hub_with_model.repositories
    main(["--repo_id", NAME, "--model", MODEL])
    assert "files changed" in capsys.readouterr().out
    main(["--repo_id", NAME, "--model", MODEL, "--dry_run"])
    assert "nothing to push" in capsys.readouterr().out
    for more in (["--quiet"], ["--dry_run"]):
        with pytest.raises(SystemExit, match="There is no model"):
            main(["--repo_id", NAME, "--model", "owner/nothing", *more])
