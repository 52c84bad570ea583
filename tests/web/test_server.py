"""The queue, the files behind the page, and what happens when things go wrong."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from helpers.web import ask, encoded, hole, noise, told
from PIL import Image

from diffunet.errors import DataError, Error, UsageError
from diffunet.inpainting import masks, part
from diffunet.web import pages, serving, views
from diffunet.web.limits import Limits
from diffunet.web.store import Store

FAST = {"steps": 2, "method": "replace"}


@pytest.fixture
def slow(monkeypatch, pipe):
    """Have each step of the model wait until it may go on; gives the event that lets it."""
    going, forward = threading.Event(), pipe.denoiser.net.forward

    def waits(*arguments, **keywords):
        going.wait(30)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(pipe.denoiser.net, "forward", waits)
    yield going
    going.set()


def test_the_page_says_what_the_model_can_do(client, model):
    found = told(client.get("/api/model"))
    assert found["name"] == str(model)
    assert (found["image_size"], found["channels"], found["classes"]) == (8, 3, ["disc", "square"])
    assert "trained" not in found["methods"]
    assert (found["folder"], found["image"], found["saves"]) == (None, None, False)


def test_the_picture_of_the_command_is_opened_and_never_deleted(asking, tmp_path):
    """However often it is asked for, and whatever has to make room."""
    path = tmp_path / "mine.png"
    noise().save(path)
    client = asking(path, limits=Limits(max_images=1))
    for _ in range(3):
        image = told(client.get("/api/model"))["image"]
    assert (image["name"], image["width"], image["height"]) == ("mine.png", 16, 12)
    shown = client.get(f"/api/images/{image['id']}/view")
    assert shown.headers["content-type"] == "image/png"
    client.image(noise(seed=1))
    client.site.close()
    assert path.exists()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "F"])
def test_pictures_of_all_modes_are_shown(client, tmp_path, mode):
    deep = mode in ("I;16", "F")
    values = np.asarray(noise(12, 16, 1)).astype(np.uint16 if mode == "I;16" else np.float32)
    picture = Image.fromarray(values) if deep else noise(12, 16, 4).convert(mode)
    path = tmp_path / "picture.tif"
    picture.save(path)
    image = client.image(path.read_bytes())
    path.write_bytes(client.get(f"/api/images/{image['id']}/view").content)
    with Image.open(path) as shown:
        assert (shown.format, shown.size, shown.mode in ("RGB", "RGBA")) == ("PNG", (16, 12), True)


def test_masks_of_large_pictures_are_drawn_smaller(client, monkeypatch):
    monkeypatch.setattr(views, "MASK_PIXELS", 48)
    image = client.image(noise())
    assert image["mask"] == {"width": 8, "height": 6}
    mask = client.mask(hole(6, 8, (2, 2, 4, 4)))
    found = told(client.post(f"/api/images/{image['id']}/hole", json={"mask": mask}))
    assert (found["width"], found["height"]) == (8, 6)
    job = client.ask(client.page(), image=image["id"], mask=mask, options=FAST | {"resize_mask": True})
    assert client.wait(job)["state"] == "done"


def bits(found):
    """Return the mask that an answer holds, bool [H W]."""
    import base64

    packed = np.frombuffer(base64.b64decode(found["bits"]), np.uint8)
    count = found["width"] * found["height"]
    return np.unpackbits(packed, count=count).astype(bool).reshape(found["height"], found["width"])


def test_masks_are_understood_as_the_command_understands_them(client):
    image = client.image(noise(30, 23))
    drawn = masks.random_mask("wide", 30, 23, np.random.default_rng(1))
    labels = Image.fromarray(drawn.astype(np.uint8) * 3)
    found = told(client.post(f"/api/images/{image['id']}/hole", json={"mask": client.mask(labels)}))
    assert (bits(found) == drawn).all()
    assert found["said"] == ["the mask: its values are 0 and 3, and 3 is filled"]
    answer = client.post(f"/api/images/{image['id']}/hole", json={"mask": client.mask(noise(30, 23))})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("the mask: this is the image itself, and no mask")
    assert str(client.site.store.folder) not in answer.text


@pytest.mark.parametrize("invert", [False, True])
def test_without_a_mask_it_is_what_is_transparent(client, invert):
    pixels = np.dstack([noise(6, 8), np.full((6, 8), 255, np.uint8)])
    pixels[2:4, 3:7, 3] = 0
    image = client.image(Image.fromarray(pixels))
    found = told(client.post(f"/api/images/{image['id']}/hole", json={"mask": None, "invert": invert}))
    assert (bits(found) == (pixels[..., 3] == 0)).all()


def test_the_regions_are_those_that_the_net_sees(client, tmp_path, pipe, monkeypatch):
    noise(64, 64).save(tmp_path / "image.png")
    hole(64, 64, (5, 5, 9, 9)).save(tmp_path / "mask.png")
    image = client.image((tmp_path / "image.png").read_bytes())
    asked = {"mask": client.mask((tmp_path / "mask.png").read_bytes()), "options": {"fit": "crop", "grow": 2}}
    found = told(client.post(f"/api/images/{image['id']}/regions", json=asked))
    masked = part.read(tmp_path / "image.png", tmp_path / "mask.png", grow=2)
    [one] = part.parts(masked, pipe.image_size, "crop")
    x0, y0, x1, y1 = one.region.corners
    assert found == {
        "regions": [{"x0": x0, "y0": y0, "x1": x1, "y1": y1, "fit": "crop"}], "pixels": int(masked.hole.sum())
    }  # fmt: skip
    # A model of windows at half of the pictures' resolution takes tiles at that scale.
    monkeypatch.setattr(pipe, "config", pipe.config.changed("data", fit="patch", scales=(0.5,)))
    found = told(client.post(f"/api/images/{image['id']}/regions", json=asked | {"options": {}}))
    [one] = found["regions"]
    assert one["fit"] == "tile"
    assert one["x1"] - one["x0"] >= 2 * pipe.image_size


def test_what_nobody_waits_for_any_more_is_not_decoded(served, monkeypatch, tmp_path):
    """Requests that a page gives up, as with each stroke on a large picture, do not keep back those that follow."""
    noise().save(tmp_path / "image.png")
    page, busy, going, decoded = served(tmp_path), threading.Event(), threading.Event(), []
    image = json.loads(ask(page, "POST", "/api/images", encoded(noise()))[2])["id"]
    for module, name in ((part, "read"), (views, "thumbnail")):

        def decodes(*_, name=name, **__):
            decoded.append(name)
            busy.set()
            going.wait(30)
            raise DataError("no picture")

        monkeypatch.setattr(module, name, decodes)
    routes = [("POST", f"/api/images/{image}/{what}") for what in ("regions", "hole")] + [("GET", "/api/folder/0/view")]
    waiting = []
    for method, path in [routes[0], *routes]:
        waiting.append(HTTPConnection("127.0.0.1", page.port, timeout=30))
        waiting[-1].request(method, path, headers={"X-Diffunet": "1", "Authorization": f"Bearer {page.token}"})
        busy.wait(30)
    end = time.monotonic() + 30
    while page.site.decoding.statistics().tasks_waiting < len(routes):
        assert time.monotonic() < end
        time.sleep(0.01)
    for each in waiting:
        each.close()
    assert ask(page, "GET", "/health")[0] == 200
    going.set()
    assert ask(page, *routes[1])[0] == 422
    assert decoded == ["read", "read"]  # the first, which was at work already, and the last


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num": 0}, "--num"), ({"num": 17}, "--num is at most 16"), ({"steps": "many"}, "--steps"),
        ({"method": "magic"}, "--method"), ({"method": "trained"}, "trained with --task inpaint"),
        ({"grow": -1}, "--grow"), ({"seed": 2**63}, "--seed"), ({"label": "cat"}, "there is no class"),
        ({"out": "/etc/passwd"}, "no option 'out'"), ({"overwrite": True}, "no option"), ({"mask": "x"}, "no option"),
        ({"guidance": float("nan")}, "--guidance"), ({"guidance": 1e400}, "--guidance"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_in_words(client, options, words):
    asked = {"page": client.page(), "kind": "fill", "image": client.image(noise())["id"], "mask": client.mask(hole())}
    answer = client.post("/api/jobs", content=json.dumps(asked | {"options": options}))
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"kind": "fill"}', b"[" * 30_000, b'{"a":' * 9_000]
)
def test_broken_requests_are_refused(client, body):
    for path in ("/api/jobs", "/api/pages", f"/api/images/{client.image(noise())['id']}/hole"):
        answer = client.post(path, content=body)
        assert answer.status_code in (201, 400, 404, 422), answer.text
        if answer.status_code != 201:
            assert answer.json()["error"]


def test_large_bodies_are_refused(asking):
    client = asking(limits=Limits(max_body=1))
    before = set(client.site.store.folder.iterdir())
    answer = client.post("/api/images", content=b"x" * 1_000_001)
    assert (answer.status_code, "max-body" in answer.json()["error"]) == (413, True)

    def endless():
        for _ in range(300):
            yield b"x" * 10_000

    assert client.post("/api/images", content=endless()).status_code == 413
    assert client.post("/api/pages", content=b'"' + b"x" * 70_000 + b'"').status_code == 413
    assert client.post("/api/images", content=b"").status_code == 400
    assert set(client.site.store.folder.iterdir()) == before


@pytest.mark.parametrize("case", ["bomb", "large", "text", "svg", "cut off", "pages"])
def test_what_is_no_picture_is_refused_and_gone(asking, tmp_path, case):
    client = asking(limits=Limits(max_pixels=10_000))
    if case in ("bomb", "large"):
        size = (30_000, 30_000) if case == "bomb" else (101, 100)
        content = encoded(Image.new("1", size))
    elif case == "pages":
        noise().save(tmp_path / "pages.tif", save_all=True, append_images=[noise(seed=1)])
        content = (tmp_path / "pages.tif").read_bytes()
    else:
        content = {"text": b"hello", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>"}.get(
            case, encoded(noise(90, 90))[:900]
        )
    answer = client.post("/api/images", content=content)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("the picture")
    assert [*client.site.store.folder.iterdir()] == []


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    store = Store(Limits(max_images=2, max_files=10))

    def item(kind="image", size=10):
        path = store.new_path()
        path.write_bytes(b"x" * size)
        return store.add(kind, path)

    one, two = item(), item()
    store.get("image", one.id)
    item()
    assert (one.path.exists(), two.path.exists()) == (True, False)
    with store.using(one):
        item()
        item()
        assert one.path.exists()
        large = item("result", 9_999_000)
        assert large.path.exists()
        with pytest.raises(Exception, match="no room"):
            item("result", 10_000_001)
    mine = tmp_path / "mine.png"
    noise().save(mine)
    for _ in range(2):  # what is there already is not taken in again, and is no copy that may go
        assert store.add("image", mine, "mine.png", owned=False, id="mine").path == mine
    store.close()
    assert not store.folder.exists()
    assert mine.exists()


def test_a_full_queue_is_said(asking, slow):
    client = asking(limits=Limits(max_jobs=2))
    page, jobs = client.page(), []
    while len(jobs) < 3:  # one runs, two wait
        answer = client.post("/api/jobs", json={"page": page, "kind": "generate", "options": {"num": 1}})
        if answer.status_code == 202:
            jobs.append(answer.json())
        time.sleep(0.05)
    answer = client.post("/api/jobs", json={"page": page, "kind": "generate", "options": {"num": 1}})
    assert answer.status_code == 429
    assert "2 jobs are waiting" in answer.json()["error"]
    assert [told(client.get(f"/api/jobs/{job['id']}"))["position"] for job in jobs] == [0, 1, 2]
    told(client.delete(f"/api/jobs/{jobs[1]['id']}"))
    states = [told(client.get(f"/api/jobs/{job['id']}")) for job in jobs]
    assert [(each["state"], each["position"]) for each in states] == [("running", 0), ("cancelled", 0), ("queued", 1)]
    slow.set()
    assert [client.wait(job)["state"] for job in jobs] == ["done", "cancelled", "done"]


def test_a_running_job_is_cancelled_within_a_step_and_the_next_one_starts(client, slow):
    page = client.page()
    first = client.ask(page, "generate", options={"num": 1, "steps": 100})
    second = client.ask(page, "generate", options={"num": 1, "steps": 2})
    told(client.delete(f"/api/jobs/{first['id']}"))
    slow.set()
    ended = client.wait(first)
    assert (ended["state"], ended["step"], ended["results"]) == ("cancelled", 1, [])
    assert client.wait(second)["state"] == "done"
    again = told(client.delete(f"/api/jobs/{second['id']}"))  # nothing happens to what has ended
    assert again["state"] == "done"


@pytest.mark.parametrize(
    ("error", "words"),
    [(MemoryError(), "out of memory"), (RuntimeError("a bug"), "a fault of diffunet's own (RuntimeError)")],
)
def test_a_job_that_fails_says_so_and_the_next_works(client, monkeypatch, pipe, error, words):
    def fails(*_, **__):
        raise error

    asked = {"image": client.image(noise())["id"], "mask": client.mask(hole()), "options": FAST}
    with monkeypatch.context() as patched:
        patched.setattr(type(pipe), "inpaint", fails)
        job = client.wait(client.ask(client.page(), **asked))
    assert job["state"] == "failed"
    assert words in job["error"]
    assert client.wait(client.ask(client.page(), **asked))["state"] == "done"


def test_an_empty_mask_and_a_mask_of_another_size_are_said(client):
    image, page = client.image(noise())["id"], client.page()
    for mask, words in ((Image.new("L", (16, 12)), "nothing to fill"), (hole(9, 9), "--resize-mask")):
        job = client.wait(client.ask(page, image=image, mask=client.mask(mask), options=FAST))
        assert job["state"] == "failed"
        assert words in job["error"]
        assert str(client.site.store.folder) not in json.dumps(job)


class Listener(threading.Thread):
    """Reads the events of a page from a real server."""

    def __init__(self, page, id):
        super().__init__(daemon=True)
        self.connection = HTTPConnection("127.0.0.1", page.port, timeout=30)
        self.connection.request("GET", f"/api/events?page={id}", headers={"Authorization": f"Bearer {page.token}"})
        self.answer = self.connection.getresponse()
        assert self.answer.getheader("content-type").startswith("text/event-stream")
        self.events = []
        self.start()

    def run(self):
        with contextlib.suppress(OSError, AttributeError, ValueError):  # `end` was called meanwhile
            while line := self.answer.readline():
                if line.startswith(b"data: "):
                    self.events.append(json.loads(line[6:]))

    def until(self, state, seconds=30):
        """Wait for an event of this state."""
        end = time.monotonic() + seconds
        while not any(event["state"] == state for event in self.events):
            assert time.monotonic() < end, self.events
            time.sleep(0.01)
        return self.events

    def end(self):
        self.connection.sock and self.connection.sock.shutdown(2)
        self.connection.close()


def test_events_tell_of_the_jobs_of_a_page_and_of_no_other(served):
    page = served()
    ids = [json.loads(ask(page, "POST", "/api/pages", {})[2])["page"] for _ in range(2)]
    mine, other = (Listener(page, id) for id in ids)
    ask(page, "POST", "/api/jobs", {"page": ids[0], "kind": "generate", "options": {"num": 2}})
    events = mine.until("done")
    assert [event["step"] for event in events] == sorted(event["step"] for event in events)
    assert other.events == []
    again = Listener(page, ids[0])  # as after a reload
    assert [len(event["results"]) for event in again.until("done")] == [2]
    assert json.loads(ask(page, "POST", "/api/pages", {"page": ids[0]})[2])["page"] == ids[0]
    assert ask(page, "GET", "/api/events?page=x")[0] == 404
    for each in (mine, other, again):
        each.end()


@pytest.mark.long
def test_jobs_end_once_their_page_has_gone(served, monkeypatch, slow):
    monkeypatch.setattr(pages, "MISSED", 0.1)
    page = served()
    id = json.loads(ask(page, "POST", "/api/pages", {})[2])["page"]
    stream = Listener(page, id)
    job = json.loads(ask(page, "POST", "/api/jobs", {"page": id, "kind": "generate", "options": {"steps": 500}})[2])
    time.sleep(3)
    slow.set()
    assert json.loads(ask(page, "GET", f"/api/jobs/{job['id']}")[2])["state"] == "running"
    stream.end()
    end = time.monotonic() + 20
    while json.loads(ask(page, "GET", f"/api/jobs/{job['id']}")[2])["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert json.loads(ask(page, "GET", f"/api/jobs/{job['id']}")[2])["state"] == "cancelled"


def test_twenty_at_once_each_get_their_own(served, pipe):
    """Each gets what it would get alone, or is told that the queue is full."""
    page, mask, found = served(limits=Limits(max_jobs=12)), encoded(hole()), {}

    def one(seed):
        id = json.loads(ask(page, "POST", "/api/pages", {})[2])["page"]
        image = json.loads(ask(page, "POST", "/api/images", encoded(noise(seed=seed)))[2])["id"]
        masked = json.loads(ask(page, "POST", "/api/masks", mask)[2])["id"]
        asked = {"page": id, "kind": "fill", "image": image, "mask": masked, "options": FAST | {"seed": seed}}
        status, _, content = ask(page, "POST", "/api/jobs", asked)
        job = json.loads(content)
        if status != 202:
            found[seed] = status, job["error"]
            return
        while (job := json.loads(ask(page, "GET", f"/api/jobs/{job['id']}")[2]))["state"] in ("queued", "running"):
            time.sleep(0.05)
        found[seed] = status, ask(page, "GET", f"/api/results/{job['results'][0]['id']}/file")[2]

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(20)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)
    assert len(found) == 20
    done = {seed: content for seed, (status, content) in found.items() if status == 202}
    assert len(done) >= 12
    assert all("waiting" in words for status, words in found.values() if status != 202)
    for seed, content in done.items():
        [alone] = pipe.inpaint(noise(seed=seed), hole(), seed=seed, **FAST)
        assert content == encoded(alone)


def test_slow_uploads_are_ended(served, monkeypatch):
    from diffunet.web import receiving

    monkeypatch.setattr(receiving, "PATIENCE", 0.3)
    page = served()
    connection = HTTPConnection("127.0.0.1", page.port, timeout=30)
    connection.putrequest("POST", "/api/images")
    for name, value in (("Authorization", f"Bearer {page.token}"), ("X-Diffunet", "1"), ("Content-Length", "1000")):
        connection.putheader(name, value)
    connection.endheaders(b"some")
    answer = connection.getresponse()
    assert answer.status == 408
    assert [*page.site.store.folder.iterdir()] == []
    assert ask(page, "GET", "/health")[0] == 200


def test_a_page_in_python(served, tmp_path):
    page = served()
    assert re.fullmatch(r"http://127.0.0.1:\d+/\?token=[\w-]{32}", page.url)
    assert page.url in page._repr_html_()
    assert "<iframe" not in page._repr_html_()  # which the browser would leave empty
    framed = served(frame="http://localhost:8888")
    assert f'<iframe src="{framed.url}"' in framed._repr_html_()
    folder = page.site.store.folder
    assert folder.exists()
    page.close()
    page.close()
    assert not folder.exists()
    for options, words in (({"token": False, "host": "0.0.0.0"}, "no-token"), ({"source": tmp_path / "x"}, "no such")):
        with pytest.raises(UsageError, match=words):
            serving.serve(None, **options)
    other = served()
    with pytest.raises(UsageError, match=f"port {other.port}"):
        serving.serve(None, host="127.0.0.1", port=other.port)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, getattr(signal, "SIGHUP", None))),
    ],
)
@pytest.mark.long
def test_a_signal_ends_the_server_within_a_step(model, tmp_path, number):
    """With a job that runs and a stream that is open; its temporary files are gone then."""
    command = [sys.executable, "-m", "diffunet", "web", str(model), "--port", "0", "--device", "cpu"]
    variables = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        url = process.stdout.readline().strip()

        class Known:
            port, token = int(re.search(r":(\d+)/", url)[1]), url.partition("token=")[2]

        id = json.loads(ask(Known, "POST", "/api/pages", {})[2])["page"]
        stream = Listener(Known, id)
        ask(Known, "POST", "/api/jobs", {"page": id, "kind": "generate", "options": {"steps": 5000, "num": 64}})
        stream.until("running")
        assert [*tmp_path.glob("diffunet-web-*")] != []
        process.send_signal(number)
        began = time.monotonic()
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - began < 10
        assert process.returncode == (0 if number == signal.SIGHUP else 128 + number)
        assert "Traceback" not in said
        assert [*tmp_path.glob("diffunet-web-*")] == []
    finally:
        process.kill()


@pytest.mark.slow
def test_on_all_addresses_it_says_the_one_of_this_machine_which_a_container_publishes(model):
    command = [
        sys.executable,
        "-m",
        "diffunet",
        "web",
        str(model),
        "--port",
        "0",
        "--device",
        "cpu",
        "--host",
        "0.0.0.0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        token = process.stdout.readline().strip().partition("?token=")[2]
        local = next(line.split()[-1] for line in process.stderr if "localhost" in line)
        with urllib.request.urlopen(local, timeout=30) as answer:
            assert answer.status == 200
        assert local.endswith(f"?token={token}")
    finally:
        process.kill()
        process.communicate()


def test_static_files_are_few_and_small():
    files = [path for path in (Path(views.__file__).parent / "page").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 125_000
    assert {path.suffix for path in files} <= {".html", ".css", ".js", ".svg"}


def test_a_source_that_cannot_be_used_is_said_at_once(pipe, tmp_path):
    (tmp_path / "text.png").write_bytes(b"hello")
    (tmp_path / "empty").mkdir()
    for source, words in (("text.png", "not an image"), ("empty", "no images"), ("gone.png", "no such")):
        with pytest.raises(Error, match=words):
            serving.serve(pipe, tmp_path / source, port=0)


def test_the_picture_of_the_command_may_change_and_vanish(asking, tmp_path):
    path = tmp_path / "mine.png"
    noise().save(path)
    client = asking(path)
    first = told(client.get("/api/model"))["image"]
    noise(9, 9).save(path)
    assert told(client.get("/api/model"))["image"]["width"] == 9
    path.unlink()
    assert told(client.get("/api/model"))["image"] is None
    job = client.ask(client.page(), image=first["id"], mask=client.mask(hole()), options=FAST)
    assert (client.wait(job)["state"], "mine.png" in client.wait(job)["error"]) == ("failed", True)
