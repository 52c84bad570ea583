"""How images are dealt out to processes: each is made once, by batches that do not depend on how many there are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffunet
from diffunet.ranks import ALONE, Ranks
from diffunet.sampling import dividing


@given(st.sets(st.integers(0, 60)), st.integers(1, 9), st.integers(1, 5))
def test_every_image_is_dealt_once_in_batches_that_are_those_of_one_process(needed, batch_size, count):
    dealt = dividing.rounds(sorted(needed), batch_size, count)
    assert [i for each in dealt for batch in each for i in batch] == sorted(needed)
    batches = [batch for each in dealt for batch in each]
    assert all(len({i // batch_size for i in batch}) == 1 for batch in batches)
    assert len({batch[0] // batch_size for batch in batches}) == len(batches)  # no batch is made twice
    assert all(1 <= len(each) <= count for each in dealt)
    assert all(len(each) == count for each in dealt[:-1])


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_shares_are_what_the_rounds_deal_to_each(num, batch_size, count):
    shares = dividing.shares(num, batch_size, count)
    assert len(shares) == count
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(num))
    for rank, share in enumerate(shares):
        assert [batch[0] // batch_size for batch in share] == list(range(rank, -(-num // batch_size), count))


@pytest.mark.seconds
@pytest.mark.parametrize("count", [1, 2, 3])
def test_image_i_is_image_i_whatever_the_number_of_processes(run, count):
    pipe = diffunet.load(run, device="cpu")
    options = {"seed": 3, "sampler": "ddpm", "steps": 2}
    whole = {i: np.asarray(picture) for i, picture in enumerate(pipe.stream(11, batch_size=4, **options))}
    skip, made, met = {0, 5}, {}, []
    for rank in range(count):
        rounds = list(dividing.divided(pipe, 11, Ranks(rank, count), batch_size=4, skip=skip, **options))
        met.append(len(rounds))
        for each, pictures in rounds:
            mine = each[rank] if rank < len(each) else []
            assert len(mine) == len(pictures)
            made |= dict(zip(mine, map(np.asarray, pictures), strict=True))
    assert set(met) == {-(-3 // count)}  # all meet as often, whether or not they have a batch
    assert made.keys() == whole.keys() - skip
    assert all(np.array_equal(made[i], whole[i]) for i in made)


def test_no_process_is_idle_and_one_takes_as_many_at_a_time_as_without_dividing(run, monkeypatch):
    pipe = diffunet.load(run, device="cpu")
    assert dividing.batch_size(pipe, 10**6, False, ALONE) == pipe.batch(False)
    assert dividing.batch_size(pipe, 10, False, ALONE) == pipe.batch(False)  # more may be asked for later
    monkeypatch.setattr(Ranks, "smallest", lambda self, number: number - 1)
    assert dividing.batch_size(pipe, 10, False, Ranks(0, 4)) == 3
    assert dividing.batch_size(pipe, 10**6, False, Ranks(0, 4)) == pipe.batch(False) - 1


def test_pixels_come_batch_by_batch_and_in_order(run):
    pipe = diffunet.load(run, device="cpu")
    batches = list(dividing.gathered(pipe, 5, ALONE, batch_size=2, seed=1, steps=2))
    assert [batch.shape for batch in batches] == [(2, 8, 8, 3), (2, 8, 8, 3), (1, 8, 8, 3)]
    pictures = pipe.sample(5, batch_size=2, seed=1, steps=2)
    assert np.array_equal(np.concatenate(batches), np.stack([np.asarray(picture) for picture in pictures]))
