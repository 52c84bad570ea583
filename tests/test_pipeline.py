"""The Python API on a real, tiny model."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

import diffunet
from diffunet import Cancelled, UsageError
from diffunet.data import masks


@pytest.fixture(scope="module")
def pipe(run):
    return diffunet.load(run)


def arrays(pictures):
    return [np.asarray(picture).astype(int) for picture in pictures]


def noise_picture(height, width, mode="RGB", seed=0):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    if mode in ("RGBA", "LA"):
        pixels[..., -1] = 255
    return Image.fromarray(pixels, mode)


def test_sampling_gives_what_was_asked_for(pipe):
    pictures = pipe.sample(5, steps=3)
    assert [picture.size for picture in pictures] == [(8, 8)] * 5
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert not np.array_equal(*arrays(pictures[:2]))


def test_an_image_does_not_depend_on_num_batch_size_or_the_others(pipe):
    whole = arrays(pipe.sample(5, steps=3, seed=4, labels="disc"))
    for batch_size in (1, 2, 5):
        for a, b in zip(
            whole, arrays(pipe.sample(5, steps=3, seed=4, labels="disc", batch_size=batch_size)), strict=True
        ):
            assert abs(a - b).max() <= 1
    assert abs(arrays(pipe.sample(2, steps=3, seed=4, labels="disc"))[1] - whole[1]).max() <= 1
    assert not np.array_equal(arrays(pipe.sample(1, steps=3, seed=5, labels="disc"))[0], whole[0])


@pytest.mark.parametrize("sampler", ["ddpm", "ddpm-large", "ddim", "euler", "heun", "dpm++2m"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_every_sampler_with_and_without_guidance(pipe, sampler, guidance):
    [picture] = pipe.sample(1, sampler=sampler, guidance=guidance, steps=3)
    assert np.asarray(picture).std() > 0


def test_labels_by_name_by_number_by_image_and_in_turn(pipe):
    turns = arrays(pipe.sample(2, steps=2))
    assert np.array_equal(turns, arrays(pipe.sample(2, steps=2, labels=["disc", "square"])))
    assert np.array_equal(turns, arrays(pipe.sample(2, steps=2, labels=[0, "1"])))
    with pytest.raises(UsageError, match="there is no class 'circle'; there are disc, square"):
        pipe.sample(1, labels="circle")
    with pytest.raises(UsageError, match="3 labels for 2 images"):
        pipe.sample(2, labels=[0, 0, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num": 0}, "num"), ({"steps": 0}, "steps"), ({"sampler": "magic"}, "unknown sampler")],
)
def test_arguments_that_cannot_be(pipe, arguments, message):
    with pytest.raises(UsageError, match=message):
        pipe.sample(**arguments)


def test_watching_and_cancelling_leave_it_usable(pipe):
    seen = []
    before = arrays(
        pipe.sample(3, steps=4, batch_size=2, on_step=lambda p: seen.append((p.step, p.steps, len(p.denoised))))
    )
    assert seen == [(i + 1, 8, 2 if i < 4 else 1) for i in range(8)]
    with pytest.raises(Cancelled):
        pipe.sample(3, steps=4, on_step=lambda p: p.step < 2)

    def fails(progress):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        pipe.sample(3, steps=4, on_step=fails)
    assert np.array_equal(before, arrays(pipe.sample(3, steps=4, batch_size=2)))


def test_threads_wait_for_each_other_and_no_global_state_is_touched(pipe):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    expected = {seed: arrays(pipe.sample(1, steps=3, seed=seed)) for seed in range(4)}
    got = {}
    threads = [
        threading.Thread(target=lambda s=seed: got.update({s: arrays(pipe.sample(1, steps=3, seed=s))}))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(got[seed], expected[seed]) for seed in range(4))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("method", ["auto", "repaint", "replace"])
@pytest.mark.parametrize("fit", ["auto", "crop", "native"])
@pytest.mark.parametrize("size", [(8, 8), (5, 13), (40, 31)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_known_pixels_come_back_byte_for_byte_and_the_hole_changes(pipe, method, fit, size, mode):
    picture = noise_picture(*size, mode)
    hole = masks.random_mask("box", *size, np.random.default_rng(1))
    filled = pipe.inpaint(picture, hole, num=2, method=method, fit=fit, steps=3)
    before, after = np.asarray(picture), [np.asarray(image) for image in filled]
    for pixels in after:
        assert pixels.shape == before.shape
        assert np.array_equal(pixels[~hole], before[~hole])
        assert not np.array_equal(pixels[hole], before[hole])
    if mode in ("LA", "RGBA"):
        assert np.array_equal(after[0][..., -1], before[..., -1])
    assert not np.array_equal(*after)


@pytest.mark.parametrize("fit", ["crop", "native"])
def test_what_was_erased_does_not_matter(pipe, fit):
    """A bright and a dark object under the same mask: the same filling, to the bit."""
    hole = np.zeros((30, 44), bool)
    hole[8:20, 10:33] = True
    fillings = []
    for value in (0, 255):
        pixels = np.array(noise_picture(30, 44))
        pixels[hole] = value
        fillings.append(np.asarray(pipe.inpaint(Image.fromarray(pixels), hole, fit=fit, steps=3)[0]))
    assert np.array_equal(*fillings)


def test_transparency_is_the_hole_and_comes_back_opaque(pipe):
    pixels = np.array(noise_picture(8, 8, "RGBA"))
    pixels[2:5, 3:7, 3] = [0, 100, 254, 7]
    out = np.asarray(pipe.inpaint(Image.fromarray(pixels), steps=3)[0])
    assert (out[..., 3] == 255).all()
    hole = pixels[..., 3] < 255
    assert np.array_equal(out[~hole], pixels[~hole])
    with pytest.raises(UsageError, match="no transparent part"):
        pipe.inpaint(noise_picture(8, 8))


def test_sixteen_bits_palette_and_one_bit(pipe, tmp_path):
    hole = np.zeros((8, 8), bool)
    hole[:, 4:] = True
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8)).astype(np.uint16)
    out = np.asarray(pipe.inpaint(Image.fromarray(deep), hole, steps=2)[0])
    assert out.dtype == np.uint16
    assert np.array_equal(out[~hole], deep[~hole])
    for mode in ("P", "1"):
        picture = noise_picture(8, 8).convert(mode)
        filled = pipe.inpaint(picture, hole, steps=2)[0]
        assert np.array_equal(np.asarray(filled.convert("RGB"))[~hole], np.asarray(picture.convert("RGB"))[~hole])


def test_masks_of_other_habits(pipe, tmp_path):
    picture, hole = noise_picture(8, 8), np.zeros((8, 8), bool)
    hole[3:6, 2:7] = True
    expected = np.asarray(pipe.inpaint(picture, hole, steps=3)[0])
    Image.fromarray(hole).save(tmp_path / "mask.png")
    inverted = Image.fromarray(np.where(hole, 10, 240).astype(np.uint8))
    assert np.array_equal(np.asarray(pipe.inpaint(picture, tmp_path / "mask.png", steps=3)[0]), expected)
    assert np.array_equal(np.asarray(pipe.inpaint(picture, inverted, invert_mask=True, steps=3)[0]), expected)
    soft = hole.astype(np.float32) * 0.5
    blended = np.asarray(pipe.inpaint(picture, soft, soft_mask=True, steps=3)[0]).astype(int)
    before = np.asarray(picture).astype(int)
    assert np.array_equal(blended[~hole], before[~hole])
    assert abs(blended - (before + expected.astype(int)) / 2)[hole].max() <= 0.51
    assert np.array_equal(np.asarray(pipe.inpaint(picture, np.zeros((8, 8), bool))[0]), before)
    with pytest.raises(UsageError, match="mask is 7x8, and the image 8x8"):
        pipe.inpaint(picture, np.zeros((8, 7), bool))


def test_a_full_mask_warns_and_replace_with_it_is_plain_sampling(pipe, caplog):
    picture = noise_picture(8, 8)
    filled = pipe.inpaint(picture, np.ones((8, 8), bool), method="replace", steps=3, seed=2, label="disc", num=2)
    assert "--invert-mask" in caplog.text
    for a, b in zip(arrays(filled), arrays(pipe.sample(2, seed=2, steps=3, labels="disc")), strict=True):
        assert abs(a - b).max() <= 1


def test_inpainting_refuses_what_it_cannot_do(pipe, tmp_path):
    hole = np.ones((8, 8), bool)
    with pytest.raises(UsageError, match="unknown method"):
        pipe.inpaint(noise_picture(8, 8), hole, method="magic")
    with pytest.raises(UsageError, match="unknown fit"):
        pipe.inpaint(noise_picture(8, 8), hole, fit="stretch")
    with pytest.raises(UsageError, match="max_pixels"):
        pipe.inpaint(noise_picture(8, 8), hole, max_pixels=63)
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(diffunet.DataError, match=r"x\.png"):
        pipe.inpaint(tmp_path / "x.png", hole)


def test_default_repaint_calls_the_net_less_than_200_times(pipe):
    calls = []
    handle = pipe.denoiser.net.register_forward_hook(lambda *_: calls.append(1))
    pipe.inpaint(noise_picture(8, 8), np.eye(8, dtype=bool))
    handle.remove()
    assert len(calls) == 168


def test_bf16_is_close(run, pipe):
    a, b = (arrays(p.sample(4, steps=4)) for p in (pipe, diffunet.load(run, dtype=torch.bfloat16)))
    assert np.mean([abs(x - y).mean() for x, y in zip(a, b, strict=True)]) < 4
