"""Segmented images whose scores are known by hand."""

import numpy as np
from PIL import Image

from evaluation.segmentation_data import SegmentationData, SegmentationSample
from evaluation.segments import LabelSpace, Segments

SIDE = 96


def box(top, left, bottom, right):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top:bottom, left:right] = True
    return mask


def sample(masks, labels, crowd=None, void=None):
    crowd = np.zeros(len(labels), bool) if crowd is None else np.array(crowd)
    void = np.zeros((SIDE, SIDE), bool) if void is None else void
    masks = np.array(masks).reshape(len(labels), SIDE, SIDE).astype(bool)
    return SegmentationSample(Image.new("RGB", (SIDE, SIDE)), masks, np.array(labels, np.int64), crowd, void)


def make_data(task, samples, names=("ground", "disc", "box"), things=(1, 2)):
    class Source:
        def __len__(self):
            return len(samples)

        def subject(self, index):
            return f"image {index}"

        def read(self, index):
            one = samples[index]
            return one.image, Segments(one.masks, one.labels, one.crowd, one.void)

    return SegmentationData("made", task, LabelSpace(tuple(names), frozenset(things)), Source())


LEFT, RIGHT = box(0, 0, SIDE, 48), box(0, 48, SIDE, SIDE)
