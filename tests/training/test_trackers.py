"""Trackers for real: what they hold of a run of two sittings. wandb and trackio are tested where they are installed."""

from types import SimpleNamespace

import pytest
from accelerate import Accelerator

from training import trackers
from training.arguments import parse
from training.run_settings import flat
from training.trackers import RUN_NAME_FILE, check_trackers, start_trackers


def make_settings(output, *names):
    return parse([f"--output_dir={output}", *(["--report_to", *names] if names else [])])


def sitting(output, name, first_step, last_step, loss):
    """Steps after `first_step` up to `last_step`; gives the accelerator as it ended."""
    settings = make_settings(output, name)
    output.mkdir(exist_ok=True)
    accelerator = Accelerator(cpu=True, log_with=settings.training.report_to, project_dir=settings.training.output_dir)
    start_trackers(accelerator, settings, output, first_step)
    for step in range(first_step + 1, last_step + 1):
        accelerator.log({"loss": loss + step, "images_seen": 8 * step}, step=step)
    accelerator.end_training()
    return accelerator


def tensorboard_of(output):
    """(step, loss) of the events that tensorboard shows, and all that were written in whatever sitting."""
    accumulator_module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown, written = (
        accumulator_module.EventAccumulator(str(output / "tensorboard" / "rats"), purge_orphaned_data=purge).Reload()
        for purge in (True, False)
    )
    return [[(event.step, event.value) for event in events.Scalars("loss")] for events in (shown, written)]


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path):
    output = tmp_path / "run"
    sitting(output, "tensorboard", 0, 5, loss=100)
    shown, _ = tensorboard_of(output)
    assert shown == [(step, 100 + step) for step in range(1, 6)]
    sitting(output, "tensorboard", 3, 7, loss=200)
    shown, written = tensorboard_of(output)
    assert shown == [(step, 100 + step) for step in range(1, 4)] + [(step, 200 + step) for step in range(4, 8)]
    assert len(written) == 9


def test_tensorboard_shows_nothing_of_a_run_that_was_started_anew(tmp_path):
    sitting(tmp_path / "run", "tensorboard", 0, 5, loss=100)
    sitting(tmp_path / "run", "tensorboard", 0, 2, loss=200)
    assert tensorboard_of(tmp_path / "run")[0] == [(1, 201), (2, 202)]


def test_tensorboard_holds_the_settings(tmp_path):
    accumulator_module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin_data = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    sitting(tmp_path / "run", "tensorboard", 0, 1, loss=1)
    (folder,) = (path.parent for path in (tmp_path / "run" / "tensorboard" / "rats").glob("*/events.*"))
    events = accumulator_module.EventAccumulator(str(folder)).Reload()
    (content,) = (
        content for tag, content in events.PluginTagToContent("hparams").items() if tag.endswith("session_start_info")
    )
    told = plugin_data.HParamsPluginData.FromString(content).session_start_info.hparams
    settings = flat(make_settings(tmp_path / "run", "tensorboard"))
    assert told["batch_size"].number_value == settings["batch_size"]
    assert told["centering"].string_value == settings["centering"]
    assert told["partition_registers"].number_value == settings["partition_registers"]
    assert told["global_crops_scale"].string_value == str(settings["global_crops_scale"])
    assert set(told) == {name for name, value in settings.items() if value is not None}


def test_without_trackers_nothing_is_started_or_written(tmp_path):
    settings = make_settings(tmp_path)
    accelerator = Accelerator(cpu=True, log_with=settings.training.report_to or None, project_dir=tmp_path)
    start_trackers(accelerator, settings, tmp_path, step=0)
    accelerator.log({"loss": 1.0}, step=1)
    assert accelerator.trackers == [] and list(tmp_path.iterdir()) == []


def test_only_the_main_process_names_the_run(tmp_path):
    started = []
    other_rank = SimpleNamespace(
        log_with=["wandb"],
        is_main_process=False,
        project_configuration=SimpleNamespace(),
        init_trackers=lambda *args, **kwargs: started.append(kwargs["init_kwargs"]["wandb"]["id"]),
    )
    start_trackers(other_rank, make_settings(tmp_path), tmp_path, step=0)
    assert started == [None] and list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_keeps_its_name_and_a_new_one_gets_another(tmp_path):
    output = tmp_path / "my run (2)"
    output.mkdir()
    first = trackers.run_name(output, step=0)
    assert first.startswith("my-run-2-") and (output / RUN_NAME_FILE).read_text() == first + "\n"
    assert trackers.run_name(output, step=10) == first
    anew = trackers.run_name(output, step=0)
    assert anew != first and trackers.run_name(output, step=10) == anew


def test_a_run_that_goes_on_in_another_folder_is_named_after_it(tmp_path):
    assert trackers.run_name(tmp_path, step=10).startswith(f"{tmp_path.name}-")


@pytest.mark.parametrize("names", [["mlflow"], ["all"], ["tensorboard", "none"]], ids=str)
def test_an_unknown_tracker_is_refused(names):
    with pytest.raises(ValueError, match=rf"report_to={names[-1]} is no tracker .*; use some of tensorboard, trackio, wandb\."):
        check_trackers(names)


def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(trackers._IS_AVAILABLE, "wandb", lambda: False)
    monkeypatch.setitem(trackers._IS_AVAILABLE, "trackio", lambda: False)
    with pytest.raises(ValueError, match=r"report_to=trackio wandb needs .*; pip install trackio wandb, or leave it out"):
        check_trackers(["trackio", "tensorboard", "wandb"])


def test_known_and_installed_trackers_pass(monkeypatch):
    for name in trackers._IS_AVAILABLE:
        monkeypatch.setitem(trackers._IS_AVAILABLE, name, lambda: True)
    check_trackers(["tensorboard", "wandb", "trackio"])
    check_trackers([])


def test_wandb_offline_keeps_both_sittings_under_one_id(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    output = tmp_path / "run"
    runs = [sitting(output, "wandb", *steps, loss=1.0).get_tracker("wandb", unwrap=True) for steps in ((0, 5), (3, 7), (0, 1))]
    assert runs[0].id == runs[1].id != runs[2].id == (output / RUN_NAME_FILE).read_text().strip()
    assert runs[0].project == "rats" and runs[0].config["global_crops_scale"] == "[0.25, 1.0]"
    assert len(list((output / "wandb").glob(f"offline-run-*/run-{runs[0].id}.wandb"))) == 2


def test_trackio_goes_on_with_the_run_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))  # which trackio reads when it is imported
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    output = tmp_path / "run"
    sitting(output, "trackio", 0, 5, loss=100)
    sitting(output, "trackio", 3, 7, loss=200)
    name = (output / RUN_NAME_FILE).read_text().strip()
    assert storage.get_runs("rats") == [name]
    lines = sorted((line["step"], line["loss"]) for line in storage.get_logs("rats", name))
    twice = [(4, 104), (4, 204), (5, 105), (5, 205)]  # those made again, as the docstring says
    assert lines == [(1, 101), (2, 102), (3, 103), *twice, (6, 206), (7, 207)]
