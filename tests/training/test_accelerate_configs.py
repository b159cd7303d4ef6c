"""The launch configurations, read and started as `accelerate launch` does."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from PIL import Image

from training.launch import choose_precision
from training.networks import build_backbone_and_head, build_config
from training.student_teacher import MultiCropNetwork

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "training" / "accelerate_configs"
CONFIGURATIONS = sorted(FOLDER.glob("*.yaml"))
SCRIPT = "training/pretrain.py"


def read(name, *flags):
    """The launcher's arguments, after it has read the file, and what it would do with them."""
    arguments = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), *flags, SCRIPT])
    return _validate_launch_command(arguments)[0]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("accelerate.utils.launch.is_port_in_use", lambda port: False)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_every_line_has_an_effect(path):
    """The launcher drops unknown keys of fsdp_config, and known keys whose flag has a default, both without a word."""
    load_config_from_file(str(path))  # refuses other unknown keys
    entries, without_file = yaml.safe_load(path.read_text()), vars(launch_command_parser().parse_args([SCRIPT]))
    sharding, arguments = entries.pop("fsdp_config", {}), vars(read(path.stem))
    assert (entries.pop("compute_environment"), entries.pop("distributed_type") == "FSDP") == ("LOCAL_MACHINE", bool(sharding))
    for name, value in entries.items():
        assert without_file[name] is None and arguments[name] == value, name
    for name, value in sharding.items():
        assert name in without_file and arguments[name] == value, name


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_the_head_says_how_to_start_it_and_what_was_run(path):
    head = re.match(r"(?:#.*\n)+", path.read_text()).group()
    assert f"--config_file training/accelerate_configs/{path.name} " in head
    assert re.search(r"not run by us|Not run by us|We have started it|Run by us", head)


def test_one_gpu_is_one_process_without_a_distributed_launcher():
    arguments = read("one_gpu")
    assert not arguments.multi_gpu and not arguments.use_fsdp and arguments.num_processes == 1
    command, environment = prepare_simple_launcher_cmd_env(arguments)
    assert command == [sys.executable, SCRIPT] and environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert environment["ACCELERATE_USE_CPU"] == "False" and environment["ACCELERATE_DYNAMO_BACKEND"] == "NO"


@pytest.mark.parametrize("name, processes, precision", [("eight_gpus", 8, "bf16"), ("cpu_two_processes", 2, "no")])
def test_processes_of_one_machine(name, processes, precision):
    arguments = read(name)
    environment = prepare_multi_gpu_env(arguments)
    assert arguments.multi_gpu and arguments.nproc_per_node == str(processes)
    assert environment["ACCELERATE_MIXED_PRECISION"] == precision and environment["ACCELERATE_DYNAMO_BACKEND"] == "NO"
    assert "ACCELERATE_USE_FSDP" not in environment


def test_the_number_of_gpus_may_be_given_on_the_command_line():
    arguments = read("eight_gpus", "--num_processes", "4")
    prepare_multi_gpu_env(arguments)
    assert arguments.nproc_per_node == "4"


def test_cpu_processes_see_no_gpu():
    assert prepare_multi_gpu_env(read("cpu_two_processes"))["CUDA_VISIBLE_DEVICES"] == "-1,-1"


@pytest.mark.parametrize("rank", [0, 1])
def test_each_of_two_nodes_starts_its_half_and_meets_the_other_at_the_first(rank):
    arguments = read("two_nodes", "--machine_rank", str(rank), "--main_process_ip", "10.0.0.1")
    prepare_multi_gpu_env(arguments)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", rank)
    assert (arguments.rdzv_endpoint, arguments.rdzv_backend) == ("10.0.0.1:29500", "static")


def test_fsdp2_reaches_the_processes():
    arguments = read("fsdp2")
    environment = prepare_multi_gpu_env(arguments)
    assert arguments.use_fsdp and arguments.nproc_per_node == "8"
    expected = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
        "ACCELERATE_MIXED_PRECISION": "bf16",
    }
    assert {name: environment.get(name) for name in expected} == expected
    assert "FSDP_TRANSFORMER_CLS_TO_WRAP" not in environment and "FSDP_BACKWARD_PREFETCH" not in environment


@pytest.mark.parametrize("model_type", ["rats", "vit"])
def test_fsdp2_shards_the_embeddings_and_each_block(model_type, monkeypatch, make_model_settings):
    for name, value in prepare_multi_gpu_env(read("fsdp2")).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and not plugin.cpu_ram_efficient_loading
    config = build_config(make_model_settings(model_type=model_type), image_size_px=32)
    backbone, head = build_backbone_and_head(model_type, config)
    network = MultiCropNetwork(backbone, head)
    plugin.set_auto_wrap_policy(network)
    is_sharded = fsdp2_prepare_auto_wrap_policy(plugin, network)
    sharded = [name for name, module in network.named_modules() if is_sharded(module)]
    blocks = "backbone.encoder.layer" if model_type == "rats" else "backbone.layers"
    assert sharded == ["backbone.embeddings", f"{blocks}.0", f"{blocks}.1"]


# Started


@pytest.fixture
def arguments(tmp_path, tiny_settings):
    """A tiny recipe on a few images."""
    recipe = tiny_settings | {"steps": 2, "batch_size": 4, "log_steps": 1, "num_workers": 0, "cpu_threads": 1, "quiet": False}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.effect_noise((40, 40), 20 + index).convert("RGB").save(tmp_path / "images" / f"{index}.png")
    return [str(tmp_path / "tiny.yaml"), f"--dataset={tmp_path / 'images'}", f"--output_dir={tmp_path / 'run'}"]


def launch(name, arguments, *flags):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(FOLDER / f"{name}.yaml"),
        *flags,
        SCRIPT,
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, start_new_session=True)


def wait_for(*launchers):
    try:
        assert [launcher.wait(timeout=150) for launcher in launchers] == [0] * len(launchers)
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)


def record(tmp_path):
    return json.loads((tmp_path / "run" / "model" / "training.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu_two_processes", "eight_gpus"])
def test_two_processes_of_one_machine_train_together(name, arguments, tmp_path):
    wait_for(launch(name, arguments, "--num_processes", "2", "--main_process_port", "0"))
    assert (record(tmp_path)["processes"], record(tmp_path)["images_seen"]) == (2, 8)


@pytest.mark.slow
def test_two_launchers_train_together(arguments, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    wait_for(*(launch("two_nodes", arguments, *address, "--machine_rank", str(rank)) for rank in range(2)))
    assert (record(tmp_path)["processes"], record(tmp_path)["images_seen"]) == (2, 8)


@pytest.mark.parametrize("has_amx, chosen", [(True, "bf16"), (False, "no")])
def test_on_a_cpu_auto_is_bfloat16_only_with_amx(monkeypatch, has_amx, chosen):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)  # alone it is slower than float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)
    assert choose_precision("auto") == chosen and choose_precision("bf16") == "bf16"
