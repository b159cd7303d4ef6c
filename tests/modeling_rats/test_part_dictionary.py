"""Entries are found where features point their way; files, names and models that do not fit are told."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import pipeline

from modeling_rats import PartDictionary, PartEntry, RatsForPartSegmentation, RatsImageProcessor
from modeling_rats.part_dictionary import ENTRIES_FILE, VECTORS_FILE, model_fingerprint
from modeling_rats.part_maps import NO_PART
from tests.hub_server import HubServer

WIDTH = 32  # of the features


def entry(name, threshold=0.5, **told):
    return PartEntry(name, threshold, **told)


@pytest.fixture
def dictionary():
    """Entry i points along axis i; the names have nothing else in common."""
    entries = [
        entry(
            "wheel", support=30, registers={3: 0.75, 1: 0.25}, heads={1: 0.75, 0: 0.25}, examples=[{"image": "a", "score": 0.5}]
        ),
        entry("window", support=10, registers={2: 1.0}, heads={1: 1.0}, examples=[{"image": "b", "score": 0.9}]),
        entry("beak", 0.9, statistics={"purity": 0.5}),
    ]
    return PartDictionary(entries, 7 * torch.eye(3, WIDTH), {"fingerprint": "f", "name": "a/b"}, {"images": 12})


def features_of(owner):
    """Features, (1, WIDTH, rows, columns), each patch along the axis of its number and of a length of its own."""
    owner = torch.tensor(owner)
    lengths = 1 + torch.arange(owner.numel()).view(owner.shape)
    return (nn.functional.one_hot(owner, WIDTH) * lengths[..., None]).permute(2, 0, 1)[None].float()


def test_a_heat_map_is_the_cosine_with_the_entry(dictionary):
    features = torch.randn(2, WIDTH, 3, 4, generator=torch.Generator().manual_seed(0))
    heat = dictionary.localize(features, "window")
    assert heat.shape == (2, 3, 4)
    for image in range(2):
        for row in range(3):
            for column in range(4):
                patch = features[image, :, row, column]
                expected = nn.functional.cosine_similarity(patch, torch.eye(WIDTH)[1], dim=0)
                assert heat[image, row, column] == pytest.approx(expected.item(), abs=1e-6)
    upsampled = dictionary.localize(features, "window", target_size=(30, 40))
    assert torch.equal(upsampled, nn.functional.interpolate(heat[:, None], size=(30, 40), mode="bilinear")[:, 0])


def test_what_is_there_is_found_the_surest_first(dictionary):
    owner = [[0, 0, 5, 5], [0, 5, 5, 1], [5, 5, 5, 5]]
    features = features_of(owner)
    features[0, 7, 1, 3] = features[0, 1, 1, 3]  # the window's patch points half elsewhere
    (found,) = dictionary.search(features)
    assert [one["name"] for one in found] == ["wheel", "window"]
    assert found[0]["score"] == pytest.approx(1) and found[1]["score"] == pytest.approx(0.5**0.5)
    assert found[0]["area"] == pytest.approx(3 / 12) and found[0]["box"] == [0, 0, 0.5, pytest.approx(2 / 3)]
    assert found[1]["box"] == [0.75, pytest.approx(1 / 3), 1, pytest.approx(2 / 3)]
    assert found[1]["peak"] == [7 / 8, pytest.approx(0.5)]
    assert [one["name"] for one in dictionary.search(features, k=1)[0]] == ["wheel"]
    with pytest.raises(ValueError, match="k=0 must be at least 1 entry"):
        dictionary.search(features, k=0)


def test_below_its_threshold_an_entry_is_not_there(dictionary):
    features = features_of([[2, 5]])
    assert [one["name"] for one in dictionary.search(features)[0]] == ["beak"]
    features[0, 9, 0, 0] = features[0, 2, 0, 0]  # cosine 0.71
    assert dictionary.search(features) == [[]]
    assert dictionary.name_parts(features, torch.tensor([[0, NO_PART]])) == [{0: (None, pytest.approx(0.5**0.5))}]


def test_parts_are_named_by_the_mean_direction_of_their_patches(dictionary):
    features = features_of([[0, 0, 1], [0, 2, 9]])
    features[:, :, 0, 2] *= 1000  # the length of a patch does not count
    small = torch.tensor([[4, 4, 4], [4, 6, NO_PART]])
    big = small.repeat_interleave(8, 0).repeat_interleave(8, 1)
    for segmentation in (small, big, big[None]):
        (named,) = dictionary.name_parts(features, segmentation)
        assert named[4] == ("wheel", pytest.approx(3 / 10**0.5)) and named[6] == ("beak", pytest.approx(1)) and len(named) == 2
    with pytest.raises(ValueError, match=r"segmentation of shape \(3, 2, 3\) must be .* for the 1 images"):
        dictionary.name_parts(features, small.expand(3, 2, 3))


def test_entries_are_renamed_dropped_and_merged(dictionary):
    assert dictionary.rename({"beak": "nose"}).names == ["wheel", "window", "nose"] and "nose" not in dictionary
    with pytest.raises(ValueError, match="Entries wheel are there twice"):
        dictionary.rename({"beak": "wheel"})
    dropped = dictionary.drop(["wheel"])
    assert dropped.names == ["window", "beak"] and torch.equal(dropped.vectors, dictionary.vectors[1:])
    merged = dictionary.merge(["window", "wheel"], "glass")
    assert merged.names == ["glass", "beak"] and len(merged.vectors) == 2
    torch.testing.assert_close(merged.vectors[0, :3], torch.tensor([30.0, 10.0, 0.0]) / 1000**0.5)
    assert merged["glass"].support == 40 and merged["glass"].threshold == 0.5
    assert merged["glass"].registers == pytest.approx({3: 0.5625, 2: 0.25, 1: 0.1875})
    assert [example["image"] for example in merged["glass"].examples] == ["b", "a"]
    assert torch.equal(merged.vectors[1], dictionary.vectors[2])
    assert dictionary.names == ["wheel", "window", "beak"]  # itself stays


def test_nearest_entries(dictionary):
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    near = PartDictionary(list(dictionary), vectors, {}).nearest("wheel", k=2)
    assert near == [("beak", pytest.approx(0.5**0.5)), ("window", pytest.approx(0))]


def test_it_reads_back_what_it_saved(dictionary, tmp_path):
    dictionary.save_pretrained(tmp_path / "new" / "folder")
    again = PartDictionary.from_pretrained(tmp_path / "new" / "folder")
    assert list(again) == [PartEntry(**{**one.__dict__, "examples": list(one.examples)}) for one in dictionary] and torch.equal(
        again.vectors, dictionary.vectors
    )
    assert again.model_info == dictionary.model_info and again.settings == {"images": 12}
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [ENTRIES_FILE, VECTORS_FILE]
    assert repr(again) == "PartDictionary(3 entries: wheel, window, beak)" and len(again) == 3


def test_an_empty_dictionary_finds_nothing(dictionary, tmp_path):
    empty = dictionary.drop(dictionary.names)
    empty.save_pretrained(tmp_path)
    features = features_of([[0, 1]])
    for one in (empty, PartDictionary.from_pretrained(tmp_path)):
        assert len(one) == 0 and one.search(features) == [[]]
        assert one.name_parts(features, torch.tensor([[3, NO_PART]])) == [{3: (None, -1.0)}]
    with pytest.raises(KeyError, match="the dictionary has 0, such as none"):
        empty.localize(features, "wheel")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version 2 is not 1"),
        ({"entries": []}, r"must be \(0 entries, hidden_size\)"),
        ({"entries": [{"name": "wheel"}]}, "KeyError"),
        ({"model": None}, "TypeError"),
    ],
)
def test_files_that_do_not_fit_are_told(dictionary, tmp_path, change, reason):
    dictionary.save_pretrained(tmp_path)
    told = json.loads((tmp_path / ENTRIES_FILE).read_text())
    (tmp_path / ENTRIES_FILE).write_text(json.dumps(told | change))
    with pytest.raises(ValueError, match=rf"(?s)holds no part dictionary that can be read.*{reason}.*build_dictionary"):
        PartDictionary.from_pretrained(tmp_path)


def test_a_folder_without_a_dictionary_is_told(dictionary, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"holds no part_dictionary\.json; .*subfolder="):
            PartDictionary.from_pretrained(folder)
    dictionary.save_pretrained(tmp_path / "dictionary")
    assert PartDictionary.from_pretrained(tmp_path, subfolder="dictionary").names == dictionary.names


def test_entries_and_features_that_do_not_fit_are_refused(dictionary):
    entries = [entry("a"), entry("b")]
    with pytest.raises(ValueError, match="Entries a are there twice"):
        PartDictionary([entry("a"), entry("a")], torch.eye(2), {})
    with pytest.raises(ValueError, match=r"vectors of shape \(3, 3\) must be \(2 entries"):
        PartDictionary(entries, torch.eye(3), {})
    for value in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Vectors of b are 0 or not finite"):
            PartDictionary(entries, torch.tensor([[1.0, 0.0], [value, 0.0]]), {})
    with pytest.raises(ValueError, match=r"shape \(1, 8, 2, 2\) must be \(batch, 32, rows, columns\)"):
        dictionary.search(torch.ones(1, 8, 2, 2))
    with pytest.raises(KeyError, match=r"no entry 'whel'; the dictionary has 3, such as wheel"):
        dictionary.localize(torch.ones(1, WIDTH, 2, 2), "whel")
    with pytest.raises(ValueError, match=r"Names \[''\] are no text or empty"):
        dictionary.rename({"wheel": ""})
    assert dictionary.drop("wheel").names == ["window", "beak"] and dictionary.merge("wheel", "tyre").names[0] == "tyre"
    with pytest.raises(ValueError, match="merge was given no names"):
        dictionary.merge([], "all")
    with pytest.raises(ValueError, match=r"no model to look at images with; call with_model"):
        dictionary.search(Image.new("RGB", (8, 8)))


# With a model


@pytest.fixture(scope="module")
def model(make_config):
    torch.manual_seed(0)
    return RatsForPartSegmentation(make_config(initializer_range=0.3, part_similarity="claimed_patches")).eval()


@pytest.fixture(scope="module")
def processor():
    return RatsImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((60, 40))


@pytest.fixture(scope="module")
def built(model, processor, photo):
    """Entries are the features of two patches of the photograph: the corners, top left and bottom right."""
    pixel_values = processor(photo, return_tensors="pt")["pixel_values"]
    features = model(pixel_values, output_patch_features=True).patch_features[0]
    vectors = torch.stack([features[:, 0, 0], features[:, -1, -1]])
    return PartDictionary([entry("first", 0.99), entry("last", 0.99)], vectors, {"fingerprint": model_fingerprint(model)})


@pytest.mark.parametrize("part_similarity", ["registers", "claimed_patches"])
@pytest.mark.parametrize("part_layer", [-1, 1])
def test_features_are_those_that_parts_are_read_from(make_config, part_layer, part_similarity):
    model = RatsForPartSegmentation(make_config(part_layer=part_layer, part_similarity=part_similarity)).eval()
    pixel_values = torch.randn(2, 3, 32, 48)
    outputs = model(pixel_values, output_patch_features=True, output_hidden_states=True)
    expected = model.rats.layernorm(outputs.hidden_states[part_layer])[:, 8:].transpose(1, 2).unflatten(-1, (4, 6))
    torch.testing.assert_close(outputs.patch_features, expected)
    torch.testing.assert_close(model(pixel_values, output_patch_features=True).patch_features, expected)
    assert model(pixel_values).patch_features is None


def test_an_image_gives_what_its_outputs_give(built, model, processor, photo):
    ready = built.with_model(model, processor)
    outputs = model(processor(photo, return_tensors="pt")["pixel_values"], output_patch_features=True)
    heat = ready.localize(photo, "last")
    assert heat.shape == (40, 60) and heat[-1, -1] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(heat, built.localize(outputs, "last", target_size=(40, 60))[0])
    assert ready.search(photo) == built.search(outputs)[0]
    assert {"first", "last"} == {one["name"] for one in ready.search(photo)}
    segmentation = processor.post_process_part_segmentation(outputs, target_sizes=[(40, 60)])[0]["segmentation"]
    named, expected = ready.name_parts(photo, segmentation), built.name_parts(outputs, segmentation)[0]
    assert {number: name for number, (name, _) in named.items()} == {number: name for number, (name, _) in expected.items()}
    assert [cosine for _, cosine in named.values()] == pytest.approx([cosine for _, cosine in expected.values()], abs=1e-5)
    with pytest.raises(ValueError, match="call the model with output_patch_features=True"):
        built.search(model(processor(photo, return_tensors="pt")["pixel_values"]))


def test_another_model_is_refused(built, model, processor, make_config):
    other = RatsForPartSegmentation(model.config)
    with pytest.raises(ValueError, match=r"built on a model with weights .*directions mean nothing there.*build_dictionary"):
        built.with_model(other, processor)
    assert built.with_model(other, processor, any_model=True).names == built.names
    with pytest.raises(ValueError, match="hidden_size=48"):
        built.with_model(RatsForPartSegmentation(make_config(hidden_size=48)), processor, any_model=True)


def test_the_type_of_the_weights_and_a_head_do_not_matter_but_the_layer_does(model, tmp_path):
    model.save_pretrained(tmp_path)
    fingerprint = model_fingerprint(model)
    halved = RatsForPartSegmentation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    labelled = RatsForPartSegmentation.from_pretrained(tmp_path, num_labels=3)
    assert model_fingerprint(halved) == model_fingerprint(labelled) == fingerprint
    assert model_fingerprint(RatsForPartSegmentation.from_pretrained(tmp_path, part_layer=1)) != fingerprint


def test_the_pipeline_names_parts(built, model, processor, photo, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vectors = torch.cat([built.vectors, torch.full((1, WIDTH), 1.0)])
    named = PartDictionary([entry("first", -1), entry("last", -1), entry("never", 1)], vectors, built.model_info)
    named.save_pretrained(tmp_path)
    segmenter = pipeline("part-segmentation", model=str(tmp_path))
    plain = segmenter(photo)
    assert all("name" not in part and part["label"] == f"register {part['register']}" for part in plain)
    outputs = model(processor(photo, return_tensors="pt")["pixel_values"], output_patch_features=True)
    segmentation = processor.post_process_part_segmentation(outputs, target_sizes=[(40, 60)])[0]["segmentation"]
    expected = {number: name for number, (name, _) in named.name_parts(outputs, segmentation)[0].items()}
    for dictionary in (named, str(tmp_path)):
        parts = segmenter(photo, dictionary=dictionary)
        assert {part["register"]: part["name"] for part in parts} == expected
        assert all(part["label"] == (part["name"] or f"register {part['register']}") for part in parts)
        assert all(np.array_equal(one["mask"], other["mask"]) for one, other in zip(parts, plain, strict=True))
    always = pipeline("part-segmentation", model=str(tmp_path), dictionary=str(tmp_path))
    batched = always([photo, photo.rotate(90, expand=True), photo], batch_size=2)
    assert [part["name"] for part in batched[0]] == [part["name"] for part in batched[2]] == [part["name"] for part in parts]
    assert all("name" in part for part in batched[1])
    foreign = PartDictionary(list(named), vectors, {"fingerprint": "other"})
    with pytest.raises(ValueError, match="directions mean nothing there"):
        segmenter(photo, dictionary=foreign)
    wanted = foreign.with_model(segmenter.model, segmenter.image_processor, any_model=True)
    assert [part["name"] for part in segmenter(photo, dictionary=wanted)] == [part["name"] for part in parts]


def test_it_is_shared_on_the_hub_and_leaves_a_models_card_alone(dictionary, monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.take_over(monkeypatch, tmp_path / "home")
        card = b"---\nlicense: mit\nlibrary_name: transformers\n---\n\nA model of mine.\n"
        hub.add("owner/rats", {"README.md": card, "config.json": b"{}"})
        dictionary.push_to_hub("owner/rats")
        arrived = hub.repositories["owner/rats"].head.files
        assert arrived.keys() == {"README.md", "config.json", ENTRIES_FILE, VECTORS_FILE}
        assert b"A model of mine." in arrived["README.md"] and b"license: mit" in arrived["README.md"]
        again = PartDictionary.from_pretrained("owner/rats")
        assert again.names == dictionary.names and torch.equal(again.vectors, dictionary.vectors)
        dictionary.drop("wheel").save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="owner/parts")
        assert PartDictionary.from_pretrained("owner/parts").names == ["window", "beak"]
