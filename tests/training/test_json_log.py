"""The log: written at once, written again by a resumed run."""

import json

from evaluation.records import read_json_lines
from training.json_log import JsonLog


def test_lines_are_on_disk_at_once(tmp_path):
    log = JsonLog(tmp_path / "log.jsonl")
    log.write({"step": 1, "loss": 2.5})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1, "loss": 2.5}\n'
    log.write({"step": 2, "loss": 2.0})
    assert read_json_lines(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]


def test_a_resumed_run_writes_its_steps_again(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)) + '{"step": 4')
    assert [entry["step"] for entry in read_json_lines(path)] == [10, 20, 30]
    log = JsonLog(path, first_step=21)
    log.write({"step": 30, "again": True})
    assert read_json_lines(path) == [{"step": 10}, {"step": 20}, {"step": 30, "again": True}]
    JsonLog(path)
    assert read_json_lines(path) == []


def test_no_log_is_an_empty_one(tmp_path):
    assert read_json_lines(tmp_path / "none.jsonl") == []
