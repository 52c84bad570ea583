"""Asking the page of a model as a browser does, in this process or by a real server."""

import io
import json
import time
from http.client import HTTPConnection

import numpy as np
from PIL import Image
from starlette.testclient import TestClient


class Client(TestClient):
    """Asks as the page does, and waits for jobs."""

    def __init__(self, page, **keywords):
        super().__init__(page.server.config.app, base_url="http://127.0.0.1", **keywords)
        self.site = page.site
        self.headers |= {"X-Diffunet": "1"}
        if page.token:
            self.headers |= {"Authorization": f"Bearer {page.token}"}

    def page(self):
        """Return the id of a new page."""
        return self.post("/api/pages").json()["page"]

    def image(self, content):
        """Upload a picture, as bytes or as Pillow has it, and return what is told of it."""
        return told(self.post("/api/images", content=encoded(content)), 201)

    def mask(self, content):
        """Upload a mask and return its id."""
        return told(self.post("/api/masks", content=encoded(content)), 201)["id"]

    def ask(self, page, kind="fill", **asked):
        """Put a job into the queue, and return what is told of it."""
        return told(self.post("/api/jobs", json={"page": page, "kind": kind, **asked}), 202)

    def wait(self, job, seconds=60):
        """Return what is told of a job once it has ended."""
        end = time.monotonic() + seconds
        while (job := told(self.get(f"/api/jobs/{job['id']}")))["state"] in ("queued", "running"):
            assert time.monotonic() < end, job
            time.sleep(0.01)
        return job

    def files(self, job):
        """Return the files of a job's results by their names."""
        assert job["state"] == "done", job
        answers = {each["name"]: self.get(f"/api/results/{each['id']}/file") for each in job["results"]}
        assert all(each.headers["content-disposition"].startswith("attachment") for each in answers.values())
        return {name: each.content for name, each in answers.items()}


def told(answer, status=200):
    """Return the JSON of an answer, which has this status."""
    assert answer.status_code == status, answer.text
    return answer.json()


def encoded(picture):
    """Return the PNG file of a picture, or bytes as they are."""
    if isinstance(picture, bytes):
        return picture
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def noise(height=12, width=16, *more, seed=0):
    """Return a picture of random colours."""
    shape = (height, width, *(more or (3,)))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8).squeeze())


def hole(height=12, width=16, box=(4, 3, 9, 8)):
    """Return a mask that is white in a box (x0, y0, x1, y1)."""
    mask = np.zeros((height, width), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(mask)


def ask(page, method, path, body=None, **headers):
    """Ask a real server; gives the status, the headers and the content."""
    connection = HTTPConnection("127.0.0.1", page.port, timeout=60)
    known = {"X-Diffunet": "1", "Authorization": f"Bearer {page.token}"}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, content, {k: v for k, v in (known | given).items() if v is not None})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found
