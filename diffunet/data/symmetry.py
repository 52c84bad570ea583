"""Whether left and right differ in a set of images, as in writing, so that mirrored images would be wrong ones."""

import numpy as np

from diffunet.pictures.images import Pixels

MOST = 1000
"""The images that are looked at."""

SHARE, CHANCE = 0.02, 3.0
"""The share from which sides differ, and so many times 1 / N is put on top, since the mean of N images differs from its
mirror image by chance. Measured, of 1,000 to 1,500 images: scikit-learn's digits 4.0%, emoji 0.7%, classes of CIFAR-10
0.1 to 0.2%, all of CIFAR-10 0.05%."""


def one_sided(pictures: Pixels) -> bool:
    """Return whether left and right differ in images uint8 [N H W C] by more than chance and what photographs have.

    What is compared is the mean d of the differences x - mirror(x): |d|^2 is 0 for images whose mirror images are as
    likely as they are, and the mean of |x - mirror(x)|^2 where all differ in the same way.
    """
    total, squares = np.zeros(pictures.shape[1:]), 0.0
    for picture in pictures:  # one at a time: as floats, all of them would be 8 times as large
        difference = picture.astype(np.float64) - picture[:, ::-1]
        total += difference
        squares += float((difference**2).sum())
    n = len(pictures)
    return n > 0 and float(((total / n) ** 2).sum()) > (SHARE + CHANCE / n) * squares / n
