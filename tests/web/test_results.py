"""What the page makes is, byte for byte, what the command line makes that it shows."""

import io
import os
import zipfile

import numpy as np
import pytest
from helpers.web import encoded, hole, noise, told
from PIL import Image

from diffunet.commands.cli import main

FAST = {"steps": 2, "method": "replace"}


def run(job, folder, image, mask=None, out="made"):
    """Run the command of a job in a folder that holds its files, and return all files that it makes."""
    folder.mkdir()
    names = {"{image}": "photo.png", "{mask}": "photo-mask.png", "{out}": out}
    (folder / "photo.png").write_bytes(image)
    if mask is not None:
        (folder / "photo-mask.png").write_bytes(mask)
    before, here = set(folder.rglob("*")), os.getcwd()
    os.chdir(folder)
    try:
        with pytest.raises(SystemExit) as stop:
            main([names.get(word, word) for word in job["command"][1:]])
    finally:
        os.chdir(here)
    assert stop.value.code == 0
    made = (path for path in set(folder.rglob("*")) - before if path.is_file() and path.name != "made.jsonl")
    return {path.name: path.read_bytes() for path in made}


PICTURES = {
    "colours": (noise(), {}),
    "grey": (noise(12, 16, 1), {"grow": 1}),
    "transparent": (noise(12, 16, 4), {"feather": 2}),
    "16 bits": (Image.fromarray((np.arange(192).reshape(12, 16) * 300).astype(np.uint16)), {"soft_mask": True}),
    "seed": (noise(), {"seed": 5, "fit": "crop"}),
    "label": (noise(), {"label": "disc", "guidance": 2.3456789}),
    "away": (noise(), {"label": "disc", "guidance": -1.5}),
    "outside": (noise(), {"invert_mask": True}),
    "jumps": (noise(), {"method": "repaint", "jump_length": 1, "jump_n_sample": 2}),
    "values": (noise(), {"mask_values": [255]}),
}


@pytest.mark.parametrize("case", PICTURES)
def test_a_filling_is_that_of_the_command_line(client, tmp_path, case):
    picture, options = PICTURES[case]
    image, mask = encoded(picture), encoded(hole())
    job = client.ask(
        client.page(), image=client.image(image)["id"], mask=client.mask(mask), options=FAST | options
    )  # fmt: skip
    [(name, content)] = client.files(client.wait(job)).items()
    assert name == "picture-filled.png"
    made = run(job, tmp_path / "by-command", image, mask, "made.png")
    assert made == {"made.png": content}
    if case == "colours":
        before, after = (np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in (image, content))
        assert (before == after).all(axis=2)[np.asarray(hole()) == 0].all()
        assert not (before == after).all()


def test_several_fillings_are_those_of_the_command_line(client, tmp_path):
    image, mask = encoded(noise(30, 40)), encoded(hole(15, 20, (5, 5, 12, 10)))
    options = FAST | {"num": 3, "resize_mask": True, "seed": 2}
    job = client.ask(client.page(), image=client.image(image)["id"], mask=client.mask(mask), options=options)
    files = client.files(client.wait(job))
    made = run(job, tmp_path / "by-command", image, mask)
    assert [*files] == [f"picture-filled-{i}.png" for i in range(3)]
    assert [*files.values()] == [made[f"photo-{i}.png"] for i in range(3)]
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/jobs/{job['id']}/zip").content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_without_a_mask_what_is_transparent_is_filled(client, tmp_path):
    pixels = np.asarray(noise(12, 16, 4)).copy()
    pixels[..., 3] = 255
    pixels[2:6, 2:6, 3] = 0
    image = encoded(Image.fromarray(pixels))
    told_of = client.image(image)
    assert told_of["transparent"]
    job = client.ask(client.page(), image=told_of["id"], options=FAST | {"soft_mask": True})
    assert "--soft-mask" not in job["command"]
    [content] = client.files(client.wait(job)).values()
    assert run(job, tmp_path / "by-command", image, out="made.png") == {"made.png": content}


@pytest.mark.parametrize("options", [{}, {"num": 3, "seed": 4, "steps": 2}, {"label": "square", "sampler": "heun"}])
def test_generated_pictures_are_those_of_the_command_line(client, tmp_path, options):
    job = client.ask(client.page(), "generate", options=options)
    files = client.files(client.wait(job))
    assert len(files) == options.get("num", 16)
    assert run(job, tmp_path / "by-command", b"") == files


def test_a_folder_is_filled_as_the_command_line_fills_it(asking, tmp_path):
    """The command goes on where the page has ended, since both have noted the same."""
    album, out = tmp_path / "album", tmp_path / "out"
    (album / "inner").mkdir(parents=True)
    for n, name in enumerate(("a.png", "inner/b.png", "c.png")):
        noise(seed=n).save(album / name)
    (album / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    client = asking(album, out=out)
    assert told(client.get("/api/model"))["folder"] == {"count": 4}
    listed = told(client.get("/api/folder?start=1&count=2"))
    assert listed == {"count": 4, "images": [{"number": 1, "name": "broken.png"}, {"number": 2, "name": "c.png"}]}
    assert client.get("/api/folder/0/view").content.startswith(b"\x89PNG")
    mask = encoded(hole())
    job = client.wait(client.ask(client.page(), "folder", mask=client.mask(mask), options=FAST | {"resize_mask": True}))
    assert (job["state"], job["files"]) == ("failed", {"total": 4, "done": 3, "failed": 1})
    assert "broken.png" in job["error"]
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")}
    assert {*found} == {"a.png", "c.png", "inner/b.png"}
    [other] = [each for each in told(client.get(f"/api/jobs?page={client.page()}"))["jobs"] if each["kind"] == "folder"]
    assert other["id"] == job["id"]  # any page finds it
    (tmp_path / "m.png").write_bytes(mask)
    (album / "broken.png").unlink()
    words = [{"{mask}": str(tmp_path / "m.png")}.get(word, word) for word in job["command"][1:]]
    (out / "c.png").unlink()
    with pytest.raises(SystemExit) as stop:
        main([*words, "--resume"])
    assert stop.value.code == 0
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.png")} == found


def test_a_result_becomes_a_picture_and_is_saved(asking, tmp_path):
    client = asking(out=tmp_path / "saved")
    assert told(client.get("/api/model"))["saves"]
    options = {"image": client.image(noise())["id"], "mask": client.mask(hole()), "options": FAST}
    job = client.wait(client.ask(client.page(), **options))
    [result] = job["results"]
    names = [told(client.post(f"/api/results/{result['id']}/save"))["name"] for _ in range(2)]
    assert names == ["picture-filled.png", "picture-filled-2.png"]
    [content] = client.files(job).values()
    assert all((tmp_path / "saved" / name).read_bytes() == content for name in names)
    image = told(client.post(f"/api/images?result={result['id']}"), 201)
    assert (image["name"], image["width"]) == ("picture-filled.png", 16)
    again = client.wait(client.ask(client.page(), **options | {"image": image["id"]}))
    assert [*client.files(again)] == ["picture-filled-filled.png"]


def test_nothing_is_saved_without_a_folder_for_it(client):
    assert not told(client.get("/api/model"))["saves"]
    job = client.wait(client.ask(client.page(), "generate", options={"num": 1}))
    answer = client.post(f"/api/results/{job['results'][0]['id']}/save")
    assert (answer.status_code, answer.json()) == (
        422, {"error": "nothing is saved here: the command names no --out"}
    )  # fmt: skip
