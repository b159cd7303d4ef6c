"""Parts as tables and entries of the metadata, and what competitors are told to do as well."""

from hub_cards.records import read_model
from hub_cards.results import adopt, as_files, parse


def test_a_row_that_beats_the_model_is_told(model_folder, write_scores):
    model = read_model(model_folder)
    (sentence,) = adopt(write_scores(), model).rivals()
    assert sentence == (
        'On synthetic_parts, split `validation`, 64 x 64 px, rendered colours 64px seed 1, "color k-means, same number of '
        "segments\" scores at least as high as this model in ARI, with 6.5 segments to the model's 6.5."
    )


def test_a_measurement_of_parts_reads_back(model_folder, write_scores):
    evaluation = adopt(write_scores(), read_model(model_folder))
    ((place, content),) = as_files([evaluation]).items()
    again = parse(content, place)
    assert again == evaluation and type(again) is type(evaluation) and again.as_table() == evaluation.as_table()
