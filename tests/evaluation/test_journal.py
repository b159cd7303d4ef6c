"""The journal: what is finished stays finished, whoever wrote it, and nothing else passes for it."""

import json

import pytest

from evaluation.journal import Journal

SETTINGS = {"seed": 0, "size": (2, 3)}


def test_a_run_goes_on_with_any_number_of_ranks(tmp_path):
    output = tmp_path / "scores.json"
    first, second = Journal(output, SETTINGS, rank=0), Journal(output, SETTINGS, rank=1)
    first.write(0, {"score": 0.1}), second.write(1, {"score": float("nan")}), first.write(3, {"score": 1 / 3})
    alone = Journal(output, SETTINGS)
    assert alone.finished == {0, 1, 3}
    with pytest.raises(RuntimeError, match=r"lacks 1 of 4 batches \(the first: 2\)"):
        alone.entries(4)
    alone.write(2, {"score": 2})
    entries = alone.entries(4)
    assert [entry["batch"] for entry in entries] == [0, 1, 2, 3] and entries[3]["score"] == 1 / 3
    with pytest.raises(RuntimeError, match="lacks 1 of 5"):
        alone.entries(5)
    alone.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_line_that_was_cut_off_is_written_again(tmp_path, finished):
    journal = Journal(tmp_path / "scores.json", SETTINGS)
    for batch in range(finished):
        journal.write(batch, {"score": batch})
    with open(journal.path, "a") as file:
        file.write(f'{{"batch": {finished}, "sco')
    resumed = Journal(tmp_path / "scores.json", SETTINGS)
    assert resumed.finished == set(range(finished))
    resumed.write(finished, {"score": finished})
    resumed.write(finished + 1, {"score": finished + 1})
    again = Journal(tmp_path / "scores.json", SETTINGS)
    assert [entry["score"] for entry in again.entries(finished + 2)] == list(range(finished + 2))


def test_a_run_of_which_only_a_torn_line_is_there_binds_nobody(tmp_path):
    journal = Journal(tmp_path / "scores.json", SETTINGS)
    journal.path.write_text('{"batch": 0, "sco')
    assert Journal(tmp_path / "scores.json", SETTINGS | {"seed": 1}).finished == set()


def test_an_unfinished_run_with_other_settings_is_refused(tmp_path):
    Journal(tmp_path / "scores.json", SETTINGS).write(0, {})
    with pytest.raises(ValueError, match=r"unfinished run for scores\.json .*\(seed was 0 and is now 1\).*another --output"):
        Journal(tmp_path / "scores.json", SETTINGS | {"seed": 1})
    assert Journal(tmp_path / "other.json", SETTINGS | {"seed": 1}).finished == set()
    assert json.loads((tmp_path / ".scores.json.journal" / "settings.json").read_text())["seed"] == 0


def test_a_run_that_finished_nothing_binds_nobody_and_a_folder_is_no_record(tmp_path):
    Journal(tmp_path / "scores.json", SETTINGS)  # such as one that failed at its first image
    corrected = Journal(tmp_path / "scores.json", SETTINGS | {"seed": 1})
    corrected.write(0, {})
    with pytest.raises(ValueError, match="seed was 1 and is now 0"):
        Journal(tmp_path / "scores.json", SETTINGS)
    (tmp_path / "results").mkdir()
    with pytest.raises(IsADirectoryError, match=r"results is a folder; it must be the name of a JSON file"):
        Journal(tmp_path / "results", SETTINGS)
    assert not (tmp_path / ".results.journal").exists()
