"""A list of many small objects in one block of memory, which loader workers share instead of copying."""

import pickle
from collections.abc import Iterable
from typing import Generic, TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


class PackedList(Generic[Item]):
    """A list whose items are kept as bytes, one after the other, and unpacked when they are asked for.

    A million Python objects are slow to copy to a process, and take several times the memory of their bytes. torch hands
    tensors to loader workers in shared memory. detectron2 packs its lists for the same reason (detectron2/data/common.py,
    `_TorchSerializedList`).

    Args:
        items: What can be pickled.
    """

    def __init__(self, items: Iterable[Item]):
        packed = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = torch.tensor([len(item) for item in packed], dtype=torch.int64).cumsum(0)  # (items,)
        self._bytes = torch.from_numpy(np.frombuffer(bytearray().join(packed), np.uint8))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Item:
        place = range(len(self))[index]
        start = int(self._ends[place - 1]) if place else 0
        return pickle.loads(self._bytes[start : int(self._ends[place])].numpy().data)
