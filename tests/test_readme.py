"""What the documents promise: code that runs, files that exist, settings that are known."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", "outputs", "build"} & set(path.parts))


def test_the_readme_code_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.count("'register': ") > 3


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(document):
    text = document.read_text()
    assert "@@" not in text and "TODO" not in text
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target and "{" not in target:
            assert (document.parent / target).exists(), target


def test_files_that_recipes_and_code_name_exist():
    for path in [*ROOT.glob("training/recipes/*.yaml"), *ROOT.glob("training/*.py"), *ROOT.glob("modeling_rats/*.py")]:
        for named in re.findall(r"\b(?:docs|training|evaluation|modeling_rats)/[\w/]+\.(?:md|py|yaml)\b", path.read_text()):
            assert (ROOT / named).exists(), f"{path.name} names {named}"
