"""From a checkpoint of the authors' to a model folder, its card and a push: the real client against a server of ours."""

import json
import subprocess
import sys
from os import environ

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForPreTraining, AutoModelForSemanticSegmentation
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from evaluation import part_video
from hub_cards.convert import main
from hub_cards.push import main as push
from hub_cards.push import push_results
from modeling_rats import RatsForPartSegmentation, RatsForPreTraining, load_original_checkpoint
from tests.hub_cards.conftest import AUTHORS, SERIES
from tests.hub_server import Fault
from tests.original_checkpoints import TINY, TINY_HEAD, VARIANTS, as_file, by_our_names, head, published

NAME = "owner/rats-vitb"
HEADS = ["--num_attention_heads", str(TINY["heads"])]  # of 8 channels, and not of 64


def meant(seed):
    """The tensors of the `seed`-th of the series, by our names."""
    return by_our_names(VARIANTS["as on the page"].write(TINY, seed=seed)[1])


def convert(*arguments):
    return main([*map(str, arguments), *HEADS, "--quiet"])


def assert_weights(folder, tensors, prefix="rats."):
    written = load_file(folder / "model.safetensors")
    assert {name.removeprefix(prefix) for name in written if name.startswith(prefix)} == tensors.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(written[prefix + name], tensor)] == []


@pytest.fixture
def converted(authors, tmp_path):
    """The last of the series, with the licence that its repository's card names."""
    convert(AUTHORS, "--file", SERIES[2], "--output", tmp_path / "rats-vitb")
    return tmp_path / "rats-vitb"


@pytest.fixture
def without_licence(authors, hub, tmp_path):
    """The same, where the card names none."""
    hub.commit_to(authors, {"README.md": b"# REGION-DINO\n"})
    convert(AUTHORS, "--file", SERIES[2], "--output", tmp_path / "rats-vitb")
    return tmp_path / "rats-vitb"


def test_a_folder_has_the_weights_and_what_is_known_of_them(converted, authors):
    assert_weights(converted, meant(2))
    record = json.loads((converted / "training.json").read_text())
    source = record["source"]
    assert (source["repo_id"], source["commit"], source["file"]) == (AUTHORS, authors.head.oid, SERIES[2])
    assert source["epochs"] == 388 and source["licence"] == {"license": "cc-by-nc-4.0"} and len(source["sha256"]) == 64
    assert record["assumed"] == {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "register_order": "head_major"}
    assert "the DINO head" in record["not_taken"]["module.head.mlp.0.weight"]
    assert record["settings"]["dtype"] == "float32" and record["settings"]["num_attention_heads"] == TINY["heads"]
    assert AutoImageProcessor.from_pretrained(converted).size == {"height": 32, "width": 32}


def test_the_card_says_whose_weights_they_are(converted, authors):
    card = ModelCard((converted / "README.md").read_text())
    assert (
        card.data.base_model == AUTHORS and card.data.license == "cc-by-nc-4.0" and "part-segmentation" in str(card.data.tags)
    )
    assert f"**The weights are not ours.** They were published as [{AUTHORS}](https://huggingface.co/{AUTHORS})" in card.text
    assert "| Trained by | the authors of the paper" in card.text and f"| Commit | `{authors.head.oid}` |" in card.text
    assert f"| File | `{SERIES[2]}` |" in card.text and "| Epochs | 388, by the name of the file |" in card.text
    assert (
        "register_order head_major" in card.text
        and f"The weights are under `cc-by-nc-4.0`, the licence that the card of [{AUTHORS}]" in card.text
    )
    assert "trained with this implementation" not in card.text and "evaluation.check_reading" in card.text


def test_a_card_without_a_licence_says_so_and_a_push_asks_for_it(without_licence, hub):
    card = ModelCard((without_licence / "README.md").read_text())
    assert card.data.get("license") is None
    assert "The licence of the weights is\nunknown" in card.text and f"the card of [{AUTHORS}]" in card.text
    arguments = [str(without_licence), "--repo_id", NAME]
    for options in ([], ["--dry_run"]):
        with pytest.raises(SystemExit, match=rf"trained by others \({AUTHORS}\), and their licence is not known.*--licence"):
            push([*arguments, *options])
        assert NAME not in hub.repositories
    push([*arguments, "--licence", "apache-2.0"])
    card = ModelCard(hub.repositories[NAME].head.files["README.md"].decode())
    assert card.data.license == "apache-2.0" and "The weights are under `apache-2.0`" in card.text


def test_a_push_that_has_named_the_licence_need_not_be_told_again(without_licence, hub):
    """It stands on the Hub now."""
    arguments = [str(without_licence), "--repo_id", NAME, "--quiet"]
    push([*arguments, "--licence", "apache-2.0"])
    push(arguments)
    assert len(hub.repositories[NAME].commits) == 2


def test_a_push_arrives_once_and_results_keep_licence_and_source(converted, hub, capsys, write_scores, monkeypatch):
    arguments = [str(converted), "--repo_id", NAME]
    push([*arguments, "--dry_run"])
    assert "README.md" in capsys.readouterr().out and NAME not in hub.repositories
    push(arguments)
    push(arguments)
    assert "Nothing to push" in capsys.readouterr().out
    repository = hub.repositories[NAME]
    assert len(repository.commits) == 2
    before = ModelCard(repository.head.files["README.md"].decode())
    push_results(NAME, [write_scores()], any_model=True)
    card = ModelCard(repository.head.files["README.md"].decode())
    assert len(repository.commits) == 3 and card.data.eval_results
    assert (card.data.license, card.data.base_model, card.data.tags) == ("cc-by-nc-4.0", AUTHORS, before.data.tags)
    section = "## Where the weights come from"
    assert card.text.split(section)[1].split("\n## ")[0] == before.text.split(section)[1].split("\n## ")[0]


def test_a_licence_of_ones_own_replaces_all_of_the_source(authors, hub, tmp_path):
    """Also the name and the link, which are those of the other licence."""
    card = "---\nlicense: other\nlicense_name: rats-terms\nlicense_link: LICENSE\n---\n"
    hub.commit_to(authors, {"README.md": card.encode()})
    folder = tmp_path / "model"
    convert(AUTHORS, "--file", SERIES[2], "--output", folder)
    data = ModelCard((folder / "README.md").read_text()).data
    assert (data.license, data.license_name, data.license_link) == ("other", "rats-terms", "LICENSE")
    push([str(folder), "--repo_id", NAME, "--licence", "mit", "--quiet"])
    card = ModelCard(hub.repositories[NAME].head.files["README.md"].decode())
    assert "The weights are under `mit`" in card.text
    assert card.data.license == "mit" and card.data.get("license_name") is None and card.data.get("license_link") is None


def test_converting_again_takes_the_licence_that_is_given_now(converted):
    for licence in ("mit", "apache-2.0"):
        convert(AUTHORS, "--file", SERIES[2], "--output", converted, "--overwrite", "--licence", licence)
        assert json.loads((converted / "training.json").read_text())["source"]["licence"] == {"license": licence}
        card = ModelCard((converted / "README.md").read_text())
        assert card.data.license == licence and f"under `{licence}`, as stated by whoever converted them" in card.text


def test_another_checkpoint_replaces_weights_and_card(converted):
    (converted / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"rats-vitb holds a model already.*--overwrite"):
        convert(AUTHORS, "--file", SERIES[1], "--output", converted)
    convert(AUTHORS, "--file", SERIES[1], "--output", converted, "--overwrite")
    assert_weights(converted, meant(1))
    card = (converted / "README.md").read_text()
    assert "| Epochs | 100," in card and "388" not in card and (converted / "notes.txt").read_text() == "mine"


def test_a_file_on_this_machine(tmp_path):
    path = tmp_path / "teacher_ep0300.pth"
    path.write_bytes(as_file(VARIANTS["as on the page"].write(TINY)[0]))
    folders = convert(path, "--output", tmp_path / "plain")
    assert folders == [tmp_path / "plain"]
    assert_weights(tmp_path / "plain", meant(0))
    card = ModelCard((tmp_path / "plain" / "README.md").read_text())
    assert card.data.get("base_model") is None and card.data.get("license") is None
    assert "They come from a third-party file" in card.text and "| Repository |" not in card.text
    assert str(tmp_path) not in (tmp_path / "plain" / "training.json").read_text()
    convert(path, "--output", tmp_path / "told", "--base_model", AUTHORS, "--licence", "mit")
    card = ModelCard((tmp_path / "told" / "README.md").read_text())
    assert (
        card.data.base_model == AUTHORS
        and card.data.license == "mit"
        and "stated by whoever converted a local file" in card.text
    )


def test_all_converts_the_series_in_its_order(authors, tmp_path, capsys):
    folders = main([AUTHORS, "--file", SERIES[2], "--output", str(tmp_path / "series"), "--all", *HEADS])
    names = ["checkpoint_teacher_ep0020", "checkpoint_teacher_ep0100", "checkpoint_teacher_ep0388"]
    assert folders == [tmp_path / "series" / name for name in names]
    assert sorted(path.name for path in (tmp_path / "series").iterdir()) == names
    for seed, folder in enumerate(folders):
        assert_weights(folder, meant(seed))
        assert json.loads((folder / "training.json").read_text())["source"]["file"] == SERIES[seed]
    assert "3 model folders written" in capsys.readouterr().out


def test_a_video_of_a_series_says_the_epochs(converted, tmp_path, monkeypatch):
    captions, original = [], part_video.side_by_side

    def noted(images, **given):
        captions.extend(given["captions"])
        return original(images, **given)

    monkeypatch.setattr(part_video, "side_by_side", noted)
    part_video.draw_video([Image.new("RGB", (32, 32))], [str(converted)], tmp_path / "parts.gif")
    assert captions == ["388 epochs"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_types_of_numbers(authors, tmp_path, dtype):
    convert(AUTHORS, "--file", SERIES[0], "--output", tmp_path / "half", "--dtype", dtype)
    kind = getattr(torch, dtype)
    assert_weights(tmp_path / "half", {name: tensor.to(kind) for name, tensor in meant(0).items()})
    assert RatsForPartSegmentation.from_pretrained(tmp_path / "half").dtype == kind


def test_a_value_that_is_too_large_for_the_type_is_refused(tmp_path):
    entries, _ = VARIANTS["as on the page"].write(TINY)
    entries["teacher"]["module.backbone.blocks.1.mlp.fc2.weight"][0, 0] = 70_000.0
    (tmp_path / "large.pth").write_bytes(as_file(entries))
    with pytest.raises(SystemExit, match=r"encoder\.layer\.1\.mlp\.fc2\.weight does not fit into float16"):
        convert(tmp_path / "large.pth", "--output", tmp_path / "half", "--dtype", "float16")
    assert not (tmp_path / "half").exists()
    convert(tmp_path / "large.pth", "--output", tmp_path / "half", "--dtype", "bfloat16")


def test_the_image_size_is_that_of_the_processor(authors, tmp_path):
    convert(AUTHORS, "--file", SERIES[0], "--output", tmp_path / "large", "--image_size", 64)
    assert AutoImageProcessor.from_pretrained(tmp_path / "large").size == {"height": 64, "width": 64}
    assert RatsForPartSegmentation.from_pretrained(tmp_path / "large").config.image_size == 32  # of its positions
    for size in (60, 0, -8):
        with pytest.raises(SystemExit, match=f"image_size={size} must be a multiple of the patch, 8 px; use [0-9]+"):
            convert(AUTHORS, "--file", SERIES[0], "--output", tmp_path / "odd", "--image_size", size)
    assert not (tmp_path / "odd").exists()


def test_the_head_may_be_kept(tmp_path):
    tensors, our_tensors = VARIANTS["as on the page"].write(TINY)
    head_tensors = head(TINY["hidden_size"], **TINY_HEAD) | {"last_layer.weight_g": torch.full((16, 1), 3.0)}
    tensors["teacher"] |= published({}, head_tensors)["teacher"]
    (tmp_path / "teacher.pth").write_bytes(as_file(tensors))
    folder = tmp_path / "with_head"
    convert(tmp_path / "teacher.pth", "--output", folder, "--with_head")
    pixels = torch.randn(1, 3, 32, 32)
    whole, parts = (kind.from_pretrained(folder) for kind in (AutoModelForPreTraining, AutoModelForSemanticSegmentation))
    assert isinstance(whole, RatsForPreTraining) and isinstance(parts, RatsForPartSegmentation)
    assert torch.equal(whole.head.prototypes.weight, head_tensors["last_layer.weight_v"])
    assert torch.equal(whole.head.prototypes.gain, torch.full((16,), 3.0))
    assert parts.eval()(pixels).similarities.shape == (1, 8, 4, 4) and whole.eval()(pixels).logits.shape == (1, 16)
    assert_weights(folder, by_our_names(our_tensors))


def test_an_earlier_revision(authors, hub, tmp_path):
    before = authors.head.oid
    hub.commit_to(authors, {SERIES[0]: b"newer"})
    convert(AUTHORS, "--file", SERIES[0], "--output", tmp_path / "old", "--revision", before)
    assert json.loads((tmp_path / "old" / "training.json").read_text())["source"]["commit"] == before
    assert_weights(tmp_path / "old", meant(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([AUTHORS], r"\(--file\)\. Its checkpoints: .*base/checkpoint_teacher_ep0388\.pth"),
        ([AUTHORS, "--file", "base/none.pth"], "has no file base/none.pth"),
        ([AUTHORS, "--file", "base/checkpoint_student_ep0020.pth"], "is no checkpoint of torch"),
        ([AUTHORS, "--file", SERIES[0], "--revision", "v2"], "no such revision"),
        ([AUTHORS, "--file", SERIES[0], "--num_registers", "12"], "num_registers=12 was given"),
        ([AUTHORS, "--file", SERIES[0], "--registers", "tokens"], "no tokens named tokens"),
        ([AUTHORS, "--file", SERIES[0], "--leave_out", "cls_token"], "no cls_token to leave out"),
        ([AUTHORS, "--file", SERIES[0], "--position_grid", "3", "4"], "not those of 3 x 4 patches"),
        (["TimingYang/RAT", "--file", SERIES[0]], "no repository TimingYang/RAT"),
        (["missing.pth"], "no file missing.pth"),
    ],
)
def test_what_the_user_can_mend_ends_with_a_message(authors, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        convert(*arguments, "--output", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_base_model_is_a_name_on_the_hub(capsys):
    with pytest.raises(SystemExit):
        convert("teacher.pth", "--output", "model", "--base_model", "https://huggingface.co/TimingYang/RATS")
    assert "must be a repository on the Hub, owner/name" in capsys.readouterr().err


def test_a_new_process_shows_no_traceback(authors, hub, tmp_path):
    """And the message of the Hub, that the repository is gated, is ours."""
    hub.faults = [Fault("/resolve/", 403, code="GatedRepo")]
    arguments = [AUTHORS, "--file", SERIES[0], "--output", str(tmp_path / "model"), *HEADS]
    run = subprocess.run(
        [sys.executable, "-m", "hub_cards.convert", *arguments],
        env=environ | hub.environment(tmp_path / "other"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert f"{AUTHORS} is gated" in run.stderr


def test_the_folder_loads_by_its_own_code(converted):
    """Not by the package: the class comes from the files beside the weights."""
    name = json.loads((converted / "config.json").read_text())["auto_map"]["AutoModelForSemanticSegmentation"]
    remote = get_class_from_dynamic_module(name, str(converted))
    assert remote.__module__.startswith("transformers_modules.")
    pixels = torch.randn(1, 3, 32, 32)
    ours, theirs = (kind.from_pretrained(converted).eval()(pixels) for kind in (RatsForPartSegmentation, remote))
    assert torch.equal(ours.similarities, theirs.similarities)


def test_the_report_is_printed_unless_quiet(authors, tmp_path, capsys):
    arguments = [AUTHORS, "--file", SERIES[0], "--output", str(tmp_path / "model"), *HEADS]
    main(arguments)
    told = capsys.readouterr().out
    assert (
        "Weights of RATS from" in told and f"Model folder: {tmp_path / 'model'}" in told and "register_order=head_major" in told
    )
    main([*arguments, "--overwrite", "--quiet"])
    assert capsys.readouterr().out == ""


def test_an_output_that_is_a_file_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"photo\.jpg is a file; name a folder"):
        main([str(tmp_path / "missing.pth"), "--output", str(tmp_path / "photo.jpg")])


def test_the_library_alone_reads_from_the_hub(authors):
    for seed, name in enumerate(SERIES):
        model, report = load_original_checkpoint(AUTHORS, name, num_attention_heads=TINY["heads"], revision="main")
        loaded = model.rats.state_dict()
        assert all(torch.equal(loaded[parameter], tensor) for parameter, tensor in meant(seed).items()), name
        assert not report.initialised
    with pytest.raises(EntryNotFoundError):
        load_original_checkpoint(AUTHORS, "base/missing.pth")
    with pytest.raises(ValueError, match="revision=main is that of a repository"):
        load_original_checkpoint({}, revision="main")
