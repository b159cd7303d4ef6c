"""Colours that stay with their register and can be told apart, whatever one's vision."""

import numpy as np
import pytest

from modeling_rats.register_colors import DISTINCT_COLORS, register_colors, seen_colors


def test_a_colour_belongs_to_its_register_whatever_the_number_of_registers():
    colors = register_colors(192)
    assert colors.shape == (192, 3) and colors.dtype == np.uint8
    for num_registers in (0, 1, 24, 96, 191):
        assert np.array_equal(register_colors(num_registers), colors[:num_registers])


def test_colours_are_all_different_and_then_repeat():
    colors = register_colors(DISTINCT_COLORS + 2)
    assert len(np.unique(colors[:DISTINCT_COLORS], axis=0)) == DISTINCT_COLORS
    assert np.array_equal(colors[DISTINCT_COLORS:], colors[:2])


@pytest.mark.parametrize("num_registers, least_distance", [(4, 47), (8, 30), (16, 19), (24, 13), (48, 9), (96, 6), (192, 4)])
def test_colours_can_be_told_apart_in_every_vision(num_registers, least_distance):
    """Distances in CIELAB; about 2 can just be noticed side by side."""
    seen = seen_colors(register_colors(num_registers))  # (registers, visions, 3)
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1)
    distances[np.diag_indices(num_registers)] = np.inf
    assert distances.min() >= least_distance


def test_colours_are_seen_as_the_literature_has_it():
    """CIELAB of sRGB's primaries, of white and of grey; and what deficient visions confuse."""
    lab = seen_colors(np.array([[255, 0, 0], [0, 0, 255], [255, 255, 255], [128, 128, 128]]))[:, 0]
    assert np.abs(lab - [[53.24, 80.09, 67.2], [32.3, 79.19, -107.86], [100, 0, 0], [53.59, 0, 0]]).max() < 0.05
    normal, protan, deutan, tritan = seen_colors(np.array([[200, 80, 60], [120, 120, 60]])).transpose(1, 0, 2)
    difference = [np.linalg.norm(one[0] - one[1]) for one in (normal, protan, deutan, tritan)]
    assert difference[1] < difference[0] / 2 and difference[2] < difference[0] / 2 and difference[3] > difference[0] / 2
