"""What a run was begun on, in plain values: the number of images, their sizes and classes, and what was left out."""

from statistics import median_low
from typing import Any

import numpy as np

from diffunet.data.dataset import Dataset
from diffunet.data.groups import Split
from diffunet.data.labels import Labels

LISTED = 1000
"""The most files that cannot be used of which each is named."""


def summary(dataset: Dataset, split: Split, classes: Labels | None) -> dict[str, Any]:
    """Return the facts of a data set as JSON can express them.

    Returns:
        `images`, `training`, `held_out` and `copies` (images that repeat another file exactly) are numbers; `sizes` has
        [width, height] of the smallest and the largest image by area, and the medians of both sides; `classes` the
        number of images of each, None without classes; `rejected` the number of files that cannot be used, `reasons`
        [path, reason] of the first `LISTED` of them; `notes` lines about what was passed over and what files say.
    """
    table = dataset.files.table
    widths, heights = table["width"].astype(np.int64), table["height"].astype(np.int64)
    by_area = widths * heights
    small, large = int(by_area.argmin()), int(by_area.argmax())
    contents = np.frombuffer(table["sha256"].tobytes(), "S32")
    return {
        "images": len(dataset.files), "training": len(split.training), "held_out": len(split.held_out),
        "copies": len(contents) - len(np.unique(contents)),
        "sizes": {
            "smallest": [int(widths[small]), int(heights[small])],
            "median": [int(median_low(widths)), int(median_low(heights))],
            "largest": [int(widths[large]), int(heights[large])],
        },
        "classes": None if classes is None else dict(classes.counts()),
        "rejected": len(dataset.rejected),
        "reasons": [[file.path, file.reason] for file in dataset.rejected[:LISTED]],
        "notes": [*dataset.left_out.lines(), *dataset.said],
    }  # fmt: skip
