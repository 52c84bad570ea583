"""Draws: pure functions of their keys, whatever divides the batch."""

import numpy as np
import pytest
import torch

from diffunet import draws

CPU = torch.device("cpu")


def test_noise_does_not_depend_on_how_the_batch_is_divided():
    whole = draws.gaussian(3, 7, 0, 50, (2, 4), CPU)
    for size in (1, 5, 16, 17, 25):
        parts = [draws.gaussian(3, 7, start, min(size, 50 - start), (2, 4), CPU) for start in range(0, 50, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_noise_is_torchs_own_of_a_generator_for_each_slot():
    sources = [torch.Generator().manual_seed(draws.seed_of("noise", 3, 7, slot)) for slot in range(3)]
    expected = torch.cat([torch.randn(16, 3, 5, generator=source) for source in sources])
    assert torch.equal(draws.gaussian(3, 7, 5, 40, (3, 5), CPU), expected[5:45])


def test_global_generators_are_seeded_as_torch_does_it_but_only_those_in_use(monkeypatch):
    with torch.random.fork_rng([]):
        torch.manual_seed(11)
        wanted = torch.get_rng_state()
        draws.seed_global(CPU, 12)
        assert not torch.equal(torch.get_rng_state(), wanted)
        seeded = []
        monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: seeded.append(("cuda", seed)))
        monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: seeded.append(("mps", seed)))
        for device in ("cpu", "cuda:1", "mps"):
            draws.seed_global(torch.device(device), 11)
            assert torch.equal(torch.get_rng_state(), wanted)
        assert seeded == [("cuda", 11), ("mps", 11)]


def test_noise_differs_by_seed_step_and_slot_and_is_normal():
    a = draws.gaussian(0, 0, 0, 64, (1000,), CPU)
    assert not torch.equal(a, draws.gaussian(0, 1, 0, 64, (1000,), CPU))
    assert not torch.equal(a, draws.gaussian(1, 0, 0, 64, (1000,), CPU))
    assert not torch.equal(a[:16], a[16:32])
    assert abs(a.mean()) < 0.02
    assert abs(a.std() - 1) < 0.02
    assert np.abs(np.corrcoef(a.numpy()) - np.eye(64)).max() < 0.2  # samples are independent of each other


def test_order_visits_every_image_once_an_epoch():
    seen = draws.order(5, range(21), 7).reshape(3, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in seen.tolist())
    assert len({tuple(epoch) for epoch in seen.tolist()}) == 3
    assert draws.order(5, [13], 7)[0] == seen.flatten()[13]
    for size in (1, 2, 7, 1000):  # one by one, as versions before 0.2.0 did it
        samples = [3, 0, 4 * size + 1, 1999]
        keys = [[5, draws.seed_of("epoch", n // size)] for n in samples]
        epochs = [np.random.Generator(np.random.Philox(key=key)).permutation(size) for key in keys]
        alone = [epoch[n % size] for epoch, n in zip(epochs, samples, strict=True)]
        assert draws.order(5, samples, size).tolist() == alone


def test_levels_are_stratified_and_uniform():
    u = np.sort(draws.levels(0, 3, 8))
    assert np.allclose(np.diff(u), 1 / 8)
    pooled = np.concatenate([draws.levels(0, step, 4) for step in range(2000)])
    histogram, _ = np.histogram(pooled, bins=10, range=(0, 1))
    assert np.abs(histogram / 800 - 1).max() < 0.15
    assert pooled.min() > 0
    assert pooled.max() < 1


def test_streams_are_each_images_own():
    both = draws.streams(9, [4, 5], (3, 2))
    first, second = both(), both()
    alone = draws.streams(9, [5], (3, 2))
    assert torch.equal(alone(), first[1:])
    assert torch.equal(alone(), second[1:])
    assert not torch.equal(first, second)
    neighbour = draws.streams(10, range(4), (3, 2))()
    assert not any(torch.equal(first[0], other) for other in neighbour)  # seed 10 shares nothing with seed 9


def test_global_random_state_is_untouched():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    draws.gaussian(0, 0, 0, 3, (2,), CPU)
    draws.streams(0, [0], (2,))()
    draws.generator(0, 0, 0).random()
    draws.of_step(0, 0).random()
    draws.levels(0, 0, 2)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_no_two_images_of_a_seed_start_from_the_same_noise():
    """With 32 bits of a seed images 3694 and 42090 of seed 2 were the same picture."""
    noise = draws.streams(2, [3694, 42090], (64,))()
    assert not torch.equal(noise[0], noise[1])
    assert draws.seed_of("image", 2, 3694) == draws.seed_of("image", 2, 42090)
    firsts = draws.streams(2, range(20_000), (2,))()
    assert len(firsts.unique(dim=0)) == 20_000
    assert draws.key_of("image", 2, 3694) >> 64  # all of the 128 bits


def test_sampling_noise_is_standard_normal():
    noise = draws.streams(5, range(200), (3, 16, 16))().double()
    assert abs(noise.mean()) < 4 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 4 * (2 / noise.numel()) ** 0.5
    assert abs((noise**4).mean() - 3) < 4 * (96 / noise.numel()) ** 0.5


@pytest.mark.parametrize("sizes", [[200, 10, 3, 1], [3] * 40 + [2] * 30 + [1] * 5 + [9], [4]])
def test_classes_in_turn_are_drawn_equally_often_and_each_image_of_a_class_too(sizes):
    count = len(sizes)
    turns = draws.Turns(5, sizes)
    drawn = np.stack(turns(range(count * 600)), axis=1)
    for number, size in enumerate(sizes):
        places = drawn[drawn[:, 0] == number, 1]
        assert len(places) == 600
        assert set(np.bincount(places, minlength=size)) <= {600 // size, -(-600 // size)}
        assert all(sorted(places[n : n + size]) == list(range(size)) for n in range(0, 600 - size, size))
    # A function of the seed and the number alone, in whichever order and portions samples are asked for.
    for first in (count * 600 - 10, 17, 500):
        assert np.array_equal(np.stack(draws.Turns(5, sizes)(range(first, first + 10)), axis=1), drawn[first:][:10])
        assert np.array_equal(np.stack(turns(range(first, first + 10)), axis=1), drawn[first:][:10])
    assert not np.array_equal(np.stack(draws.Turns(6, sizes)(range(40)), axis=1), drawn[:40])
    # Of any K samples in a row that begin at a multiple of K, each class has one.
    assert all({*drawn[n : n + count, 0]} == set(range(count)) for n in range(0, count * 600, count))


def test_classes_of_one_size_are_in_orders_of_their_own():
    drawn = np.stack(draws.Turns(5, [6] * 200)(range(200 * 12)), axis=1)
    orders = np.array([drawn[drawn[:, 0] == number, 1] for number in range(200)])
    assert len({tuple(each) for each in orders}) == 200
    assert abs(np.corrcoef(orders[:, :6].ravel(), orders[:, 6:].ravel())[0, 1]) < 0.12  # an epoch like the next: 1
    assert np.abs(np.array([np.bincount(orders[:, n], minlength=6) for n in range(6)]) - 200 / 6).max() < 5 * 5.3
