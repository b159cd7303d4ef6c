"""ImageNet-S919 val: the class of an image's object as a colour, R + 256 G; 0 is all else, 1000 is to be ignored.

Folders and code as the README of LUSSeg/ImageNet-S has them; not checked against the published files.
"""

from functools import partial
from pathlib import Path

from evaluation.layouts.annotated_images import AnnotatedImage, Layout, paired_files, read_colour_codes


def read_imagenet_s(root: Path) -> list[AnnotatedImage]:
    """The images in order of class and file name.

    Raises:
        FileNotFoundError: If a folder is missing, or an image or mask has no partner.
    """
    pairs = paired_files(root, "validation", "validation-segmentation")
    # Blue counts 65536, so that a mask which uses it is refused as an unknown label.
    return [
        AnnotatedImage(f"validation/{name}", image, partial(read_colour_codes, mask, f"validation/{name}"), mask)
        for name, image, mask in pairs
    ]


IMAGENET_S919 = Layout(
    name="ImageNet-S",
    tree=(
        "ROOT/ImageNetS919/validation/n01440764/ILSVRC2012_val_00000293.JPEG ...\n"
        "ROOT/ImageNetS919/validation-segmentation/n01440764/ILSVRC2012_val_00000293.png ..."
    ),
    read=read_imagenet_s,
    folder="ImageNetS919",
)
