"""From images to a model that strangers use: every step in a process of its own, all against one Hub on this machine."""

import json
import sys

import pytest
from huggingface_hub import ModelCard

from evaluation.synthetic_parts import write_dataset
from tests.hub_server import HubServer
from tests.new_processes import in_a_new_process, what_a_stranger_gets, what_a_user_gets

NAME, DATA = "owner/rats-tiny", "owner/rendered"
TINY = (
    "--hidden_size 32 --num_hidden_layers 2 --num_attention_heads 4 --intermediate_size 64 --num_registers 8 --patch_size 8 "
    "--num_prototypes 16 --head_hidden_size 16 --head_bottleneck_size 8 --global_crop_size 32 --local_crop_size 16 "
    "--num_local_crops 2 --export_image_size 48 --steps 4 --warmup_steps 1 --batch_size 4 --log_steps 1 --num_workers 0 "
    "--cpu_threads 1"
)


@pytest.mark.slow
def test_from_a_data_set_on_the_hub_to_a_model_on_the_hub_and_back(tmp_path):
    rendered = tmp_path / "rendered"
    for seed, (split, images) in enumerate({"train": 24, "validation": 6}.items()):
        write_dataset(rendered, images, 48, seed, "easy", split, num_processes=1, quiet=True)
    photo = tmp_path / "photo.png"
    with HubServer() as hub:
        hub.add(f"datasets/{DATA}", {path.name: path.read_bytes() for path in rendered.glob("*.parquet")})

        def run(arguments, home):
            return in_a_new_process(hub, arguments, tmp_path / home)

        python, output = sys.executable, tmp_path / "run"
        run([python, "training/pretrain.py", "--dataset", DATA, "--output_dir", output, *TINY.split()], "trainer")
        evaluate = [python, "-m", "evaluation.part_segmentation", "--untrained", "--pictures", tmp_path / "pictures"]
        scores = ["--output", tmp_path / "scores.json"]
        run([*evaluate, "--model", output / "model", "--dataset", DATA, "--split", "validation", *scores], "evaluator")
        card = ["--model", output / "model", "--pictures", tmp_path / "pictures", "--curves", output / "curves.png"]
        run([python, "-m", "hub_cards.card", *card, "--repo_id", NAME], "author")
        push = [python, "-m", "hub_cards.push", output / "model", "--repo_id", NAME, "--results", tmp_path / "scores.json"]
        assert f"{hub.url}/{NAME}/commit/" in run(push, "author")
        assert "Nothing to push" in run(push, "author")

        arrived = hub.repositories[NAME].head.files
        card = ModelCard(arrived["README.md"].decode())
        measured = json.loads((tmp_path / "scores.json").read_text())["scores"]["model"]
        assert {result.dataset_type for result in card.data.eval_results} == {DATA} == {*card.data.datasets}
        assert measured["m2o_miou"] in [result.metric_value for result in card.data.eval_results]
        assert {"assets/curves.png", "assets/parts_0.png", "assets/input_0.png", "assets/failure_0.png"} <= arrived.keys()

        photo.write_bytes((tmp_path / "pictures" / "inputs" / "0000.png").read_bytes())
        user = what_a_user_gets(hub, NAME, photo, tmp_path)
        told = what_a_stranger_gets(hub, NAME, photo, tmp_path)
        assert told == user and len(told[2]) >= 1

        # The scores of a model that is loaded from the Hub are its own, and are added by name.
        again = ["--model", NAME, "--dataset", DATA, "--split", "train", "--output", tmp_path / "train.json"]
        run([*evaluate[:3], *again], "user")
        run([python, "-m", "hub_cards.push", "--repo_id", NAME, "--results_only", "--results", tmp_path / "train.json"], "user")
        card = ModelCard(hub.repositories[NAME].head.files["README.md"].decode())
        assert {result.dataset_split for result in card.data.eval_results} == {"train", "validation"}
        assert len(hub.repositories[NAME].commits) == 3  # the first, the model, the results
