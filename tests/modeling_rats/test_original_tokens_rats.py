"""Registers and positions are told apart by their shapes, and what the shapes leave open is asked for."""

import pytest
import torch

from modeling_rats.original_tokens_rats import TokenOptions, listing, read_tokens

SIZE, HEADS, REGISTERS = 12, 3, 6
EVERYTHING = "Found: all of it."


def made(*shape):
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def read(positions=36, heads=HEADS, more=None, **options):
    found = {"registers": made(REGISTERS, SIZE), "pos_embed": made(1, positions, SIZE), **(more or {})}
    return read_tokens("a file", found, SIZE, heads, TokenOptions(**options), EVERYTHING)


def test_registers_that_come_in_turn_are_sorted_by_head():
    tokens = read(register_order="register_major").tensors["register_tokens"]
    assert torch.equal(tokens[0], made(REGISTERS, SIZE)[[0, 3, 1, 4, 2, 5]])  # register j * 3 + h is the j-th of head h
    assert torch.equal(read().tensors["register_tokens"][0], made(REGISTERS, SIZE))


@pytest.mark.parametrize(
    ("positions", "grid", "front", "is_guess"),
    [
        (36, (6, 6), 0, False),
        (37, (6, 6), 1, False),
        (42, (6, 6), 6, False),
        (43, (6, 6), 7, False),
        (16, (4, 4), 0, True),  # or 3 x 3 behind 7
        (9, (3, 3), 0, False),
        (10, (3, 3), 1, False),
    ],
)
def test_the_front_of_the_positions_is_the_least_that_leaves_a_square(positions, grid, front, is_guess):
    tokens = read(positions)
    before = made(1, positions, SIZE)
    assert tokens.grid == grid and torch.equal(tokens.tensors["position_embeddings"], before[:, front:])
    added = before[0, front - REGISTERS : front] if front >= REGISTERS else 0
    assert torch.equal(tokens.tensors["register_tokens"][0], made(REGISTERS, SIZE) + added)
    assert ("position_grid" in tokens.assumed) is is_guess
    assert tokens.sources["register_tokens"] == ["registers", "pos_embed"][: 1 + (front >= REGISTERS)]


def test_grids_of_two_by_two_are_no_guess():
    with pytest.raises(
        ValueError, match=r"4 positions, which are not those of a square of patches.*--position_grid ROWS COLUMNS"
    ):
        read(4)
    assert read(4, position_grid=[2, 2]).grid == (2, 2)


def test_positions_of_registers_and_of_a_class_token_in_tensors_of_their_own():
    more = {"pos_embed_registers": 1000 * made(1, REGISTERS, SIZE), "pos_embed_cls": made(1, 1, SIZE)}
    tokens = read(more=more)
    assert torch.equal(tokens.tensors["register_tokens"][0], 1001 * made(REGISTERS, SIZE))
    assert tokens.adapted["register_tokens"] == "their positions (pos_embed_registers) are added to them, which is exact"
    assert tokens.not_taken == {"pos_embed_cls": "the position of a class token, which is not there"}
    with pytest.raises(ValueError, match="has 43 positions, which are not those"):  # the registers' would be there twice
        read(43, more=more)


@pytest.mark.parametrize("name", ["mask_token", "Mask", "ibot.mask_embed"])
@pytest.mark.parametrize("shape", [(1, 1, SIZE), (1, SIZE), (SIZE,)])
def test_a_mask_token_is_known_by_its_name_in_any_shape(name, shape):
    tokens = read(more={name: made(*shape)})
    assert torch.equal(tokens.tensors["mask_token"], made(1, 1, SIZE)) and tokens.sources["mask_token"] == [name]


@pytest.mark.parametrize("name", ["mask_token.bias", "cls_heads.scale", "pos_net.scale"])
def test_of_a_name_the_last_part_counts(name):
    with pytest.raises(ValueError, match=f"no place: {name}. {EVERYTHING} Name the registers"):
        read(more={name: made(SIZE)})


@pytest.mark.parametrize("shape", [(2, REGISTERS, SIZE), (1, REGISTERS, SIZE + 1), (SIZE, 1), (), (1, 2, 3, SIZE)])
def test_other_shapes_have_no_place(shape):
    with pytest.raises(ValueError, match="no place: another"):
        read(more={"another": torch.zeros(shape)})


@pytest.mark.parametrize("name", ["cls_token", "class_embedding", "CLS"])
def test_a_class_token_beside_registers_is_told_with_the_way_out(name):
    with pytest.raises(ValueError, match=rf"a class token beside its registers \({name}\).*another one.*leave_out={name}"):
        read(more={name: made(1, 1, SIZE)})


def test_a_class_token_alone_is_no_register():
    found = {"cls_token": made(1, 1, SIZE), "pos_embed": made(1, 36, SIZE)}
    with pytest.raises(ValueError, match=r"no tensor that could be the registers, .* N of at least 2\. Found"):
        read_tokens("a file", found, SIZE, HEADS, TokenOptions(), EVERYTHING)


def test_a_list_has_those_that_differ_in_a_number_alone_in_one_entry():
    tensors = {f"blocks.{index}.norm.weight": torch.zeros(3) for index in range(12)}
    tensors |= {"blocks.0.extra": torch.zeros(2, 1), "norm1.weight": torch.zeros(3), "step": torch.tensor(1)}
    assert listing(tensors) == "Found: blocks.*.norm.weight (3,) x 12; blocks.0.extra (2, 1); norm1.weight (3,); step ()."
    assert listing({}) == "Found: nothing."
