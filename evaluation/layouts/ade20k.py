"""ADE20K val as the scene parsing benchmark publishes it: 150 labels from 1, 0 is all else.

Not checked against the published files.
"""

from functools import partial
from pathlib import Path

from evaluation.layouts.annotated_images import AnnotatedImage, Layout, paired_files, read_labels


def read_ade20k(root: Path, split: str = "validation") -> list[AnnotatedImage]:
    """The images in order of their file names.

    Args:
        root: The data set's folder.
        split: Name of the split's folders, "training" or "validation".

    Raises:
        FileNotFoundError: If a folder is missing, or an image or mask has no partner.
    """
    pairs = paired_files(root, f"images/{split}", f"annotations/{split}")
    return [AnnotatedImage(f"images/{split}/{name}", image, partial(read_labels, mask), mask) for name, image, mask in pairs]


ADE20K = Layout(
    name="ADE20K",
    tree=(
        "ROOT/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg ...\n"
        "ROOT/ADEChallengeData2016/annotations/validation/ADE_val_00000001.png ..."
    ),
    read=read_ade20k,
    folder="ADEChallengeData2016",
)
