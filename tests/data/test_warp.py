"""Augmentation that the net is told of: what is done is what is said, and nothing is done where nothing is said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.small import tiny
from scipy.linalg import expm
from scipy.ndimage import affine_transform
from scipy.stats import ks_2samp

from diffunet import build, draws
from diffunet.data.warp import CHANNELS, draw, matrix, warp
from diffunet.training.batches import Batches, Share


def told(**changes: float) -> torch.Tensor:
    """The vector of one image, [1 9]."""
    place = {"across": 0, "upside_down": 1, "scale": 2, "cos": 3, "sin": 4, "x": 5, "y": 6, "right": 7, "down": 8}
    vector = torch.zeros(1, CHANNELS)
    for name, value in changes.items():
        vector[0, place[name]] = value
    return vector


def noise(channels: int = 3, size: int = 16, count: int = 1) -> torch.Tensor:
    """Images in which no two pixels are alike, with all values that 8 bits have."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, size, size))
    return torch.from_numpy((pixels / 127.5 - 1).astype(np.float32))


def drawn(probability: float, count: int, seed: int = 0) -> np.ndarray:
    return draw(draws.of_step(seed, 0), probability, count)


def one_by_one(probability: float, count: int) -> np.ndarray:
    """Vectors with the same law, in the plainest way."""
    vectors = []
    for place in range(count):
        generator = draws.generator(9, 0, place)
        across, upside_down, scaled, turned, stretched, moved = generator.random(6) < probability
        angle, direction = generator.uniform(-math.pi, math.pi, 2)
        scale, stretch, right, down = generator.standard_normal(4)
        changes = [
            (across, [1]),
            (upside_down, [1]),
            (scaled, [scale]),
            (turned, [math.cos(angle) - 1, math.sin(angle)]),
            (stretched, [stretch * math.cos(direction), stretch * math.sin(direction)]),
            (moved, [right, down]),
        ]
        vectors.append([number if made else 0 for made, numbers in changes for number in numbers])
    return np.array(vectors, np.float32)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_image_that_nothing_is_done_to_is_the_same_bit_for_bit(channels: int) -> None:
    images = noise(channels, count=3)
    vectors = torch.cat([told(), told(sin=0.5, cos=-0.1), told()])
    new = warp(images, vectors)
    assert torch.equal(new[[0, 2]], images[[0, 2]])
    assert not torch.equal(new[1], images[1])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [8, 15])
def test_flips_turns_and_whole_pixels_are_numpys(channels: int, size: int) -> None:
    images = noise(channels, size)
    image = images[0].numpy()

    def close(vector: torch.Tensor, expected: np.ndarray) -> None:
        new = warp(images, vector)[0].numpy()
        if channels == 4:  # of a transparent pixel the colour does not matter
            new, expected = (np.where(x[3] > -1 + 1e-3, x, -1) for x in (new, expected))
        # A colour of 4 channels is divided by its alpha, 1/255 at the least.
        assert np.abs(new - expected).max() < (2e-3 if channels == 4 else 2e-5)

    close(told(across=1), image[:, :, ::-1])
    close(told(upside_down=1), image[:, ::-1])
    close(told(across=1, upside_down=1), image[:, ::-1, ::-1])
    close(told(cos=-1, sin=1), np.rot90(image, 1, (1, 2)))
    close(told(cos=-1, sin=-1), np.rot90(image, -1, (1, 2)))
    close(told(cos=-2, sin=0), np.rot90(image, 2, (1, 2)))
    wide = np.pad(image, [(0, 0), (size, size), (size, size)], "symmetric")
    moved = wide[:, size - 2 : 2 * size - 2, size + 3 : 2 * size + 3]  # 2 down, 3 to the left
    close(told(right=-3 * 8 / size, down=2 * 8 / size), moved)
    # In their order: first the flip, then the turn, then the move.
    turned = np.pad(np.rot90(image[:, :, ::-1], 1, (1, 2)), [(0, 0), (size, size), (size, size)], "symmetric")
    close(told(across=1, cos=-1, sin=1, right=8 / size), turned[:, size : 2 * size, size - 1 : 2 * size - 1])


def by_hand(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a vector says, made of other parts: new = linear @ old + move, (right, up) from the centre, in sizes."""
    across, upside_down, n, cos_less_1, sin, x, y, right, down = vector.astype(float)
    angle = np.arctan2(sin, cos_less_1 + 1)
    linear = np.diag([-1.0 if across else 1.0, -1.0 if upside_down else 1.0]) * 2 ** (0.2 * n)
    linear = expm(angle * np.array([[0, -1], [1, 0]])) @ linear
    direction, strength = np.arctan2(y, x) / 2, 2 ** (0.2 * np.hypot(x, y))
    along, beside = (np.array([np.cos(a), np.sin(a)]) for a in (direction, direction + np.pi / 2))
    linear = (strength * np.outer(along, along) + np.outer(beside, beside) / strength) @ linear
    return linear, np.array([right, -down]) / 8


def test_the_vector_says_exactly_what_is_done() -> None:
    vectors = drawn(0.5, 300)
    mine = matrix(torch.from_numpy(vectors)).double().numpy()
    turn_up = np.diag([1.0, -1.0])  # rows are counted downwards
    for vector, backwards in zip(vectors, mine, strict=True):
        linear, move = by_hand(vector)
        inverse = np.linalg.inv(linear)
        expected = turn_up @ np.column_stack([inverse @ turn_up, -2 * inverse @ move])
        assert np.abs(backwards - expected).max() < 2e-6 * max(1, np.abs(expected).max())


def test_what_is_drawn_is_a_stretch_by_its_own_amount_along_its_own_direction() -> None:
    """Each stretch has its own vector: (n, b) and (n, b + pi) are one, (-n, b + pi / 2) too, (-n, b + pi) is not."""

    def stretch(n: float, b: float) -> torch.Tensor:
        return told(x=n * math.cos(2 * b), y=n * math.sin(2 * b))

    there, back = (matrix(stretch(n, b))[0, :, :2] for n, b in ((0.7, 0.4), (-0.7, 0.4 + math.pi)))
    assert torch.allclose(there @ back, torch.eye(2), atol=1e-6)
    assert not torch.allclose(stretch(0.7, 0.4), stretch(-0.7, 0.4 + math.pi))
    assert torch.allclose(stretch(0.7, 0.4), stretch(-0.7, 0.4 + math.pi / 2), atol=1e-6)


def test_all_together_is_what_scipy_does() -> None:
    """On a smooth image the two interpolations hardly differ; the frame is SciPy's `reflect`, which is ours."""
    size, vectors = 32, drawn(0.5, 40, seed=1)
    rows, columns = np.mgrid[:size, :size].astype(float)
    image = 0.5 * np.sin(0.3 * columns + 0.2 * rows) + 0.4 * np.cos(0.3 * rows - 0.1 * columns)
    # Flat at the border, so that the mirrored image is as smooth there.
    image *= np.outer(*[np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2] * 2)
    images = torch.from_numpy(image.astype(np.float32)).expand(len(vectors), 1, size, size)
    new = warp(images, torch.from_numpy(vectors))[:, 0].numpy()
    swap, middle = np.array([[0, 1], [1, 0]]), np.array([(size - 1) / 2] * 2)
    for result, vector in zip(new, vectors, strict=True):
        linear, move = by_hand(vector)
        flip = np.diag([1.0, -1.0])
        inverse = swap @ np.linalg.inv(flip @ linear @ flip) @ swap  # (row, column)
        place = middle - inverse @ (middle + size * (swap @ flip @ move))
        expected = affine_transform(image, inverse, place, order=5, mode="reflect")
        assert np.abs(result - expected).max() < 0.01


def test_each_change_is_made_at_its_probability_alone_and_said_by_its_own_numbers() -> None:
    count, p = 4000, 0.12
    vectors = drawn(p, count)
    parts = [[0], [1], [2], [3, 4], [5, 6], [7, 8]]
    made = np.stack([(vectors[:, part] != 0).all(axis=1) for part in parts], axis=1)
    said = np.stack([(vectors[:, part] != 0).any(axis=1) for part in parts], axis=1)
    assert np.array_equal(made, said)
    five = 5 * math.sqrt(p * (1 - p) / count)
    assert np.abs(made.mean(axis=0) - p).max() < five
    together = (made.T.astype(float) @ made) / count
    off = ~np.eye(6, dtype=bool)
    assert np.abs(together[off] - p**2).max() < 5 * math.sqrt(p**2 / count)
    alone = (1 - p) ** 6
    assert abs((~made.any(axis=1)).mean() - alone) < 5 * math.sqrt(alone * (1 - alone) / count)
    same = (matrix(torch.from_numpy(vectors)) == torch.eye(2, 3)).all(dim=(1, 2)).numpy()
    assert np.array_equal(same, (vectors == 0).all(axis=1))


def test_the_law_of_each_number() -> None:
    vectors = drawn(0.999, 3000).astype(float)
    vectors = vectors[(vectors != 0).all(axis=1)]
    assert (vectors[:, :2] == 1).all()
    assert np.abs((vectors[:, 3] + 1) ** 2 + vectors[:, 4] ** 2 - 1).max() < 1e-6
    five = 5 / math.sqrt(len(vectors))
    normal = np.column_stack([vectors[:, [2, 7, 8]], np.hypot(vectors[:, 5], vectors[:, 6])])
    assert np.abs(normal[:, :3].mean(axis=0)).max() < five
    assert np.abs((normal**2).mean(axis=0) - 1).max() < five * math.sqrt(2)
    for cos, sin in ((vectors[:, 3] + 1, vectors[:, 4]), (vectors[:, 5], vectors[:, 6])):
        angle = np.arctan2(sin, cos)
        for harmonic in (1, 2):  # uniform on the circle
            assert abs(np.exp(1j * harmonic * angle).mean()) < five


@pytest.mark.parametrize("probability", [0.12, 1.0])
def test_a_batch_has_the_law_of_vectors_that_are_drawn_one_by_one(probability: float) -> None:
    both = drawn(probability, 4000), one_by_one(probability, 4000)
    for n in range(CHANNELS):
        assert ks_2samp(*(each[:, n] for each in both), method="asymp").pvalue > 1e-4, n
    for n, m in ((3, 4), (5, 6), (7, 8), (0, 1), (2, 7)):
        assert ks_2samp(*(each[:, n] * each[:, m] for each in both), method="asymp").pvalue > 1e-4, (n, m)
        assert ks_2samp(*(np.hypot(each[:, n], each[:, m]) for each in both), method="asymp").pvalue > 1e-4, (n, m)


def test_a_higher_probability_keeps_what_was_drawn() -> None:
    few, many = drawn(0.12, 500), drawn(0.5, 500)
    assert np.array_equal(many[few != 0], few[few != 0])
    assert not drawn(0.0, 50).any()


def test_new_values_stay_in_range_where_a_cubic_would_overshoot() -> None:
    checks = torch.from_numpy((np.indices((16, 16)).sum(0) // 4 % 2 * 2.0 - 1).astype(np.float32))
    vectors = torch.from_numpy(drawn(0.5, 64))
    for channels in (1, 3, 4):
        new = warp(checks.expand(64, channels, 16, 16), vectors)
        assert new.isfinite().all()
        assert new.abs().max() <= 1
        assert new.shape == (64, channels, 16, 16)


def test_no_border_comes_in() -> None:
    flat = torch.full((200, 3, 16, 16), 0.25)
    assert (warp(flat, torch.from_numpy(drawn(0.9, 200))) - 0.25).abs().max() < 1e-5


def test_colours_of_transparent_pixels_do_not_bleed() -> None:
    """A red disc on transparent green: whatever can be seen is red."""
    y, x = np.mgrid[:32, :32] - 15.5
    inside = torch.from_numpy(y**2 + x**2 < 100)
    red, green = torch.tensor([1.0, -1, -1]), torch.tensor([-1.0, 1, -1])
    colours = torch.where(inside, red[:, None, None], green[:, None, None])
    image = torch.cat([colours, torch.where(inside, 1.0, -1.0)[None]])
    new = warp(image.expand(64, 4, 32, 32), torch.from_numpy(drawn(0.6, 64, seed=3)))
    colours, alpha = new.movedim(1, -1).split([3, 1], -1)
    alpha = (alpha[..., 0] + 1) / 2
    off = (colours - red).abs().amax(-1)
    assert ((alpha > 0.07) & (alpha < 0.9)).sum() > 500  # there are mixtures to get wrong
    assert off[alpha > 0.07].max() < 1e-4
    assert (alpha * off)[alpha > 0].max() < 0.04  # over any background: 5 of 255
    hidden = (colours[alpha == 0] - green).abs().amax(-1)
    assert (hidden < 0.01).float().mean() > 0.5  # what is hidden stays what it was


def test_batches_say_what_the_draws_say_and_change_no_other_draw(folder) -> None:
    config = tiny()
    data, schedule = build.dataset(config.data, folder), build.schedule(config)

    def batches(probability: float, rank: int = 0, processes: int = 1, passes: int = 1) -> Batches:
        options = {"fit": "random", "flip": True, "augment": probability, "class_names": ("disc", "square")}
        share = Share(7, 12, passes, rank, processes)
        return Batches(data, np.arange(40), schedule, share, tiny(data=options).data, 0.5)

    seen = []
    for step in (0, 5):
        [plain], [whole] = batches(0.0).step(step), batches(0.3).step(step)
        assert plain.augment is None
        for name in ("images", "sigma", "label"):
            assert torch.equal(getattr(plain, name), getattr(whole, name))
        parts = [batch for rank in range(2) for batch in batches(0.3, rank, 2, 3).step(step)]
        assert torch.equal(torch.cat([batch.augment for batch in parts]), whole.augment)
        assert whole.augment.dtype == torch.float32
        assert whole.augment.shape == (12, CHANNELS)
        moved = whole.to(torch.device("cpu"))
        assert torch.equal(moved.augment, whole.augment)
        seen.append(whole.augment)
    assert seen[0].any()
    assert not torch.equal(*seen)
    assert batches(0.3).held_out(np.arange(5)).augment is None


def test_an_image_is_warped_the_same_in_any_batch() -> None:
    images, vectors = noise(3, 16, 12), torch.from_numpy(drawn(0.5, 12))
    together = warp(images, vectors)
    apart = torch.cat([warp(images[n : n + 2], vectors[n : n + 2]) for n in range(0, 12, 2)])
    assert torch.allclose(together, apart, atol=1e-6)
