"""Which tokens or maps of a model part maps are read from: the block, before or after the final LayerNorm, centred or not.

The paper compares the registers and patches of the last layer by their cosine. But in DINO pretraining nothing trains the
patches that leave the last block, and while a training is young all tokens share one direction; so other readings are worth
a look. With `means` a map, be it a register's or of attention, says where a part is, and the patches there what it looks like.
"""

from typing import NamedTuple

LAYER, BEFORE_NORM, CENTERED, MEANS = "layer", "before_norm", "centered", "means"


class Reading(NamedTuple):
    """One way of reading. The default is the paper's.

    Attributes:
        layer: The block whose tokens or attention are read: -1 is the last, -2 the one before; never from the front.
        normed: Whether tokens pass the model's final LayerNorm, whatever block they come from.
        centered: Whether the mean over an image's registers is subtracted from each of them, and that over its patches from
            each patch, so that a direction that all of them share does not count.
        means: Whether each patch goes to the nearest mean of the patches that each map claims, after five steps of k-means that
            start there, and not to the highest map.
    """

    layer: int = -1
    normed: bool = True
    centered: bool = False
    means: bool = False

    @classmethod
    def parse(cls, text: str) -> "Reading":
        """From words joined by plus signs, in any order, each once: `layer-2+before_norm+centered`.

        Raises:
            ValueError: If a word is none of these.
        """
        words = text.split("+")
        layers = [word for word in words if word.startswith(f"{LAYER}-") and word.removeprefix(f"{LAYER}-").isdecimal()]
        others = [word for word in words if word not in layers]
        layer = -int(layers[0].removeprefix(f"{LAYER}-")) if layers else -1
        if len(set(words)) < len(words) or len(layers) > 1 or not set(others) <= {BEFORE_NORM, CENTERED, MEANS} or layer == 0:
            raise ValueError(
                f"Reading {text!r} is unknown; it must be made of {LAYER}-1 (the last block), {LAYER}-2 ..., {BEFORE_NORM}, "
                f"{CENTERED} and {MEANS}, each at most once and joined by plus signs, such as {LAYER}-2+{CENTERED}."
            )
        return cls(layer, BEFORE_NORM not in others, CENTERED in others, MEANS in others)

    def __str__(self) -> str:
        """The words that `parse` reads; nothing for the paper's reading."""
        words = [f"{LAYER}{self.layer}"] if self.layer != -1 else []
        words += [BEFORE_NORM] * (not self.normed) + [CENTERED] * self.centered + [MEANS] * self.means
        return "+".join(words)


PAPER = Reading()
