"""From the authors' page to parts on a stranger's photograph, at full size, each step in a process of its own."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from modeling_rats import RatsForPreTraining, RatsModel
from tests.hub_server import HubServer
from tests.new_processes import in_a_new_process, what_a_stranger_gets, what_a_user_gets
from tests.original_checkpoints import BASE, HEAD, SMALL, VARIANTS, as_file, by_our_names, forward, head, head_forward

AUTHORS, NAME = "TimingYang/RATS", "owner/rats-vits"
FILE = "small/checkpoint_teacher_ep0300.pth"
PUBLISHED = {
    "as on the page": True,  # and pushed
    "positions of both, class token left out": False,
    "names of transformers": False,
    "LayerScale": False,
    "registers in turn with positions": True,
}

# Converts, and prints the most memory in bytes that it held beyond what its imports take.
CONVERT = r"""
import re, sys
from pathlib import Path
from hub_cards.convert import main

def held(name):
    return 1024 * int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

before = held("VmRSS")
main(sys.argv[1:])
print(held("VmHWM") - before)
"""


def convert(hub, arguments, home):
    return int(in_a_new_process(hub, [sys.executable, "-c", CONVERT, *arguments, "--quiet"], home).splitlines()[-1])


def as_arguments(options):
    for name, value in options.items():
        yield from (f"--{name}", *([value] if isinstance(value, str) else value))


def assert_same_tensors(folder, meant):
    ours, theirs = load_file(folder / "model.safetensors"), by_our_names(meant)
    backbone = {name.removeprefix("rats."): tensor for name, tensor in ours.items() if name.startswith("rats.")}
    assert backbone.keys() == theirs.keys()
    assert [name for name, tensor in backbone.items() if not torch.equal(tensor, theirs[name])] == []


@torch.no_grad()
def assert_computes_the_figure(folder, meant, sizes):
    """Registers and patches of one image, in float64; gives the mean register."""
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    meant = {name: tensor.double() for name, tensor in meant.items()}
    registers, patches = forward(meant, meant["register_tokens"][0], image, sizes["heads"])
    tokens = RatsModel.from_pretrained(folder).double()(image).last_hidden_state
    torch.testing.assert_close(tokens, torch.cat([registers, patches], dim=1), rtol=0, atol=1e-9)
    return image, registers.mean(dim=1)


@pytest.mark.slow
def test_small_from_five_kinds_of_files_to_parts_without_the_package(tmp_path):
    photo, head_tensors = tmp_path / "photo.png", head(SMALL["hidden_size"], **HEAD)
    Image.effect_noise((320, 240), 90).convert("RGB").save(photo)
    with HubServer() as hub:
        for seed, (variant, is_pushed) in enumerate(PUBLISHED.items()):
            entries, meant = VARIANTS[variant].write(SMALL, head_tensors, seed)
            content, folder, home = as_file(entries), tmp_path / f"rats-{seed}", tmp_path / f"home-{seed}"
            assert len(content) / 1e6 == pytest.approx(176.2, abs=0.8)  # as their page says; LayerScale and positions beside
            repository = hub.add(AUTHORS, {FILE: content, "README.md": b"---\nlicense: mit\n---\n"})
            options = as_arguments(VARIANTS[variant].options)
            memory = convert(hub, [AUTHORS, "--file", FILE, "--output", folder, *options], home)
            assert memory < 3 * len(content), variant
            source = json.loads((folder / "training.json").read_text())["source"]
            assert source["commit"] == repository.head.oid and source["epochs"] == 300
            assert_same_tensors(folder, meant)
            assert_computes_the_figure(folder, meant, SMALL)
            if is_pushed:
                name, visitors = f"{NAME}-{seed}", tmp_path / f"visitors-{seed}"
                visitors.mkdir()
                in_a_new_process(hub, [sys.executable, "-m", "hub_cards.push", folder, "--repo_id", name], home)
                told = what_a_stranger_gets(hub, name, photo, visitors)
                assert told == what_a_user_gets(hub, name, photo, visitors) and len(told[2]) >= 1
            del hub.repositories[AUTHORS]


@pytest.mark.slow
def test_base_with_its_head_in_less_than_three_times_the_memory_of_its_file(tmp_path):
    """With gains that are not one, so that they are written, too."""
    head_tensors = head(BASE["hidden_size"], **HEAD) | {
        "last_layer.weight_g": torch.linspace(0.5, 2, HEAD["prototypes"])[:, None]
    }
    entries, meant = VARIANTS["as on the page"].write(BASE, head_tensors)
    path, folder = tmp_path / "checkpoint_teacher_ep0388.pth", tmp_path / "rats-vitb"
    torch.save(entries, path)
    assert path.stat().st_size / 1e6 == pytest.approx(436.2, abs=0.3)
    with HubServer() as hub:
        assert convert(hub, [path, "--output", folder, "--with_head"], tmp_path / "home") < 3 * path.stat().st_size
    assert_same_tensors(folder, meant)
    image, pooled = assert_computes_the_figure(folder, meant, BASE)
    with torch.no_grad():
        logits = RatsForPreTraining.from_pretrained(folder).double()(image).logits
    theirs = head_forward({name: tensor.double() for name, tensor in head_tensors.items()}, pooled)
    torch.testing.assert_close(logits, theirs, rtol=0, atol=1e-9)
