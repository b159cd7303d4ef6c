"""The efficiency command end to end on tiny models: record, resumption and refusals."""

import json
import shutil

import pytest
import torch
from transformers import ViTConfig

from evaluation import efficiency, forward_pass
from modeling_rats.multiply_accumulates import ARCHITECTURES, multiply_accumulates

TIME = ["--measure", "time", "--quiet", "--repeats", "2", "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(forward_pass, "SHORTEST_REPEAT_S", 0.0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def models(make_config, tmp_path):
    """Folders of a tiny RATS and a ViT of its size."""
    make_config().save_pretrained(tmp_path / "rats")
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ViTConfig(**tiny, patch_size=8, image_size=32).save_pretrained(tmp_path / "vit")
    return ["--models", "rats", "vit"]


def written():
    with open("efficiency.json") as file:
        return json.load(file)


@pytest.mark.skipif(not forward_pass.Path("/proc/self/clear_refs").exists(), reason="reads /proc, which Linux has")
def test_the_command_measures_everything(make_config, models, capsys):
    options = [*TIME[2:], "--profile", "--precisions", "float32", "--batch_size", "2"]
    record = efficiency.main(["--models", "rats", "--sizes", "32", *options])
    assert written() == record
    (point,) = record["points"]
    assert (point["model"], point["image_size"], point["precision"]) == ("rats", 32, "float32")
    assert point["multiply_accumulates"] == multiply_accumulates(make_config(), 32, 2)
    time = point["time"]
    assert len(time["forward_each_s"]) == 2 and time["forward_s"] == pytest.approx(sum(time["forward_each_s"]) / 2)
    turns = [forward / products for forward, products in zip(time["forward_each_s"], time["products_each_s"], strict=True)]
    assert time["forward_to_products"] == pytest.approx(sum(turns) / 2)
    assert point["memory"]["weights_mib"] > 0 and point["memory"]["forward_mib"] >= 0
    assert point["profile"]["forward"]["matrix products"] > 0
    assert record["comparisons"] == record["crossovers"] == []  # there is no ViT beside it
    assert record["settings"]["batch_size"] == 2 and record["settings"]["processor"]
    assert record["command"].startswith("python -m evaluation.efficiency --models rats --sizes 32")
    printed = capsys.readouterr().out
    assert "| rats  | 32        | float32   |" in printed and "under the profiler" in printed


def test_rats_is_compared_with_the_vit_of_its_size(make_config, models, tmp_path):
    make_config(hidden_size=64).save_pretrained(tmp_path / "other")
    sizes = ["--sizes", "48", "32", "--precisions", "float32", "bfloat16"]
    record = efficiency.main(["--models", "rats", "other", "vit", *sizes, *TIME, "--picture", "figure/picture.png"])
    assert len(record["points"]) == 3 * 2 * 2 and (tmp_path / "figure/picture.png").is_file()
    compared = {(one["rats"], one["vit"], one["image_size"], one["precision"]) for one in record["comparisons"]}
    assert compared == {("rats", "vit", size, kind) for size in (32, 48) for kind in ("float32", "bfloat16")}
    by_key = {(point["model"], point["image_size"], point["precision"]): point for point in record["points"]}
    first = record["comparisons"][0]
    times = [by_key[name, 32, "float32"]["time"]["forward_s"] for name in ("vit", "rats")]
    assert first["time"] == pytest.approx(times[0] / times[1]) and "memory" not in first
    assert "products_s" in by_key["rats", 32, "float32"]["time"] and "products_s" not in by_key["vit", 32, "float32"]["time"]
    said = {(one["measure"], one["precision"]): one["said"] for one in record["crossovers"]}
    assert said.keys() == {("multiply_accumulates", None), ("time", "float32"), ("time", "bfloat16")}


@pytest.mark.parametrize(("size", "even_px"), [("s", 320), ("b", 448)])
def test_crossovers_by_formula_are_those_of_the_model_page(size, even_px):
    models = {name: efficiency._summary(config) for name, config in ARCHITECTURES.items()}
    found = efficiency._crossover_by_formula(f"rats-{size}", f"vit-{size}", models)
    assert round(found["image_size"] / 16) * 16 == even_px


def test_a_record_outlives_the_folders_of_its_models(models, tmp_path):
    options = [*TIME, "--sizes", "32", "--precisions", "float32"]
    efficiency.main([*models, *options])
    shutil.rmtree(tmp_path / "rats")
    record = efficiency.main(["--models", "vit", *options])
    assert [point["model"] for point in record["points"]] == ["rats", "vit"] and len(record["comparisons"]) == 1


def test_what_was_measured_is_kept_and_the_rest_measured(models, monkeypatch):
    options = [*models, *TIME, "--precisions", "float32"]
    first = efficiency.main([*options, "--sizes", "32"])
    timed = []
    original = efficiency.time_in_turns
    monkeypatch.setattr(
        efficiency, "time_in_turns", lambda passes, *others: timed.append([*passes]) or original(passes, *others)
    )
    second = efficiency.main([*options, "--sizes", "32", "48"])
    assert timed == [["forward rats", "products rats", "forward vit"]]  # at 48 px alone
    assert [point for point in second["points"] if point["image_size"] == 32] == first["points"]
    assert len(second["points"]) == 4
    efficiency.main([*options, "--sizes", "48"])
    assert len(timed) == 1 and written()["points"] == second["points"]


def test_an_interrupted_run_leaves_what_it_has_measured(models, monkeypatch):
    original = efficiency._time

    def until_48(workloads, *others):
        if workloads["rats"].image_size == 48:
            raise KeyboardInterrupt
        return original(workloads, *others)

    monkeypatch.setattr(efficiency, "_time", until_48)
    with pytest.raises(KeyboardInterrupt):
        efficiency.main([*models, *TIME, "--sizes", "32", "48", "--precisions", "float32"])
    assert [(point["image_size"], "time" in point) for point in written()["points"]] == [(32, True), (32, True)]


def test_other_settings_are_not_mixed_in(models, make_config):
    options = [*models, *TIME, "--sizes", "32", "--precisions", "float32"]
    efficiency.main(options)
    before = written()
    with pytest.raises(SystemExit, match=r"batch_size was 1 and is now 2.*another --output"):
        efficiency.main([*options, "--batch_size", "2"])
    make_config(num_registers=4).save_pretrained("rats")
    with pytest.raises(SystemExit, match=r"rats was .*'num_registers': 8.* and is now .*'num_registers': 4"):
        efficiency.main(options)
    assert written() == before


@pytest.mark.parametrize("content", ["[1]", "{}", "no JSON", '{"points": [{}], "models": {}, "settings": {}}'])
def test_a_file_that_is_something_else_is_left_alone(models, tmp_path, content):
    (tmp_path / "efficiency.json").write_text(content)
    with pytest.raises(SystemExit, match="is no record of this command"):
        efficiency.main([*models, *TIME, "--sizes", "32"])
    assert (tmp_path / "efficiency.json").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sizes", "100"], r"100 px is no positive multiple of the patches of rats-s, 16 px.*96 or 112"),
        (["--models", "./nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_measured_ends_with_a_message(arguments, told):
    with pytest.raises(SystemExit, match=told):
        efficiency.main([*arguments, *TIME])


@pytest.mark.parametrize(
    "arguments", [["--sizes", "0"], ["--device", "nonsense"], ["--precisions", "int8"], ["--threads", "0"]]
)
def test_bad_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        efficiency.main([*TIME, *arguments])
    assert arguments[0] in capsys.readouterr().err
