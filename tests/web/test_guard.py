"""Who may speak to the server: strangers, other sites, strange names, and paths that lead elsewhere."""

import re

import pytest
from helpers.web import encoded, noise, told
from starlette.testclient import TestClient

ROUTES = [
    ("GET", "/"), ("GET", "/static/style.css"), ("GET", "/api/model"), ("POST", "/api/pages"),
    ("GET", "/api/events?page=x"), ("POST", "/api/images"), ("GET", "/api/images/x"), ("GET", "/api/images/x/view"),
    ("POST", "/api/images/x/hole"),
    ("POST", "/api/images/x/regions"), ("POST", "/api/masks"), ("GET", "/api/jobs"), ("POST", "/api/jobs"),
    ("GET", "/api/jobs/x"), ("DELETE", "/api/jobs/x"), ("GET", "/api/jobs/x/previews/0"), ("GET", "/api/jobs/x/zip"),
    ("GET", "/api/results/x/view"), ("GET", "/api/results/x/file"), ("POST", "/api/results/x/save"),
    ("GET", "/api/folder"), ("GET", "/api/folder/0/view"), ("GET", "/api/runs"), ("GET", "/api/runs/report?ids=x"),
    ("GET", "/help"), ("GET", "/help/guides.css"), ("GET", "/help/x"),
]  # fmt: skip


@pytest.fixture
def stranger(page):
    """Asks without a token."""
    made = page()
    client = TestClient(made.server.config.app, base_url="http://127.0.0.1", follow_redirects=False)
    client.headers |= {"X-Diffunet": "1"}
    client.page = made
    return client


def test_every_route_is_known_here(page):
    """A new one has to be added to the list above."""
    known = {re.sub(r"/x(?=/|$)", "/{id}", path.partition("?")[0]) for _, path in ROUTES}
    paths = (route.path.replace("{topic}", "{id}") for route in page().site.app().routes)
    there = {re.sub(r"\{number:int\}", "0", path) for path in paths}
    assert there - {"/health", "/static"} == known - {"/static/style.css"}


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nothing_is_answered_without_the_token(stranger, method, path):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"diffunet-{stranger.page.port}=wrong"}):
        assert stranger.request(method, path, headers=headers).status_code == 401
    assert stranger.request(method, path.partition("?")[0] + "?token=wrong").status_code == 401
    if path != "/":  # the token in an address is for the page alone
        assert stranger.request(method, f"{path.partition('?')[0]}?token={stranger.page.token}").status_code == 401


def test_health_says_nothing(stranger):
    assert told(stranger.get("/health")) == {"ok": True}


def test_the_token_becomes_a_cookie(stranger):
    answer = stranger.get(f"/?token={stranger.page.token}")
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"diffunet-{stranger.page.port}={stranger.page.token};")
    assert {"httponly", "samesite=strict"} <= set(re.split(r"; ?", cookie.lower()))
    assert 'url=/"' in answer.text
    assert stranger.page.token not in answer.text
    assert told(stranger.get("/api/model"))["image_size"] == 8


@pytest.mark.parametrize(
    "foreign",
    ['theme={"a":1}', "x=a b", "foo", "name=Jörg", "version=1", "g=hello, world", "=", '"', f"diffunet-1={'y' * 9}"],
)
def test_cookies_of_other_servers_of_the_host_lock_nobody_out(stranger, foreign):
    """A browser sends those of all ports, whatever their form."""
    cookie = f"{foreign}; diffunet-{stranger.page.port}={stranger.page.token}; {foreign}"
    assert stranger.get("/api/model", headers={"Cookie": cookie.encode()}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": "http://127.0.0.1"}, 201),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"X-Diffunet": None}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1234"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:8765"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "192.168.1.7"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "a@127.0.0.1"}, 421),
        ({"Host": "["}, 421),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 201),  # through a tunnel
        ({"Host": "[::1]:9000"}, 201),
    ],
    ids=str,
)
def test_other_sites_and_names(client, headers, status):
    for name, value in headers.items():
        client.headers.pop(name.lower(), None)
        if value is not None:
            client.headers[name] = value
    answer = client.post("/api/pages", json={})
    assert answer.status_code == status
    if status == 201 and "Host" not in headers:
        return
    if "Sec-Fetch-Site" in headers and status == 403:
        assert client.get("/api/model").status_code == 403
        assert client.get("/").status_code == 200  # a link may lead here


def test_where_others_reach_it_addresses_are_names(page):
    made = page(host="0.0.0.0")
    client = TestClient(made.server.config.app, base_url="http://192.168.1.7")
    assert client.get("/health").status_code == 200
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 421
    assert made.local == f"http://localhost:{made.port}/?token={made.token}"
    published = TestClient(made.server.config.app, base_url="http://localhost:80")  # by a container, under another port
    assert published.get(f"/?token={made.token}").status_code == 200
    assert published.get("/api/model", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/health"), ("GET", "/nothing"), ("PUT", "/api/model")])
def test_all_answers_bind_the_browser(client, method, path):
    if "/api/events" in path:
        path = "/api/events?page=x"
    headers = client.request(method, path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert not {name for name in headers if name.startswith("access-control")}


def test_a_frame_is_allowed_by_name(page):
    made = page(frame="http://localhost:8888")
    answer = TestClient(made.server.config.app, base_url="http://127.0.0.1").get("/health")
    assert "frame-ancestors 'self' http://localhost:8888" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    "id",
    ["..", "../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "%252e%252e%252f", "..\\..\\x", "file:///etc/passwd",
     "C:%5CWindows", "x%00y", "\u202e", "a" * 5000],
)  # fmt: skip
def test_ids_are_no_paths(client, tmp_path, id):
    """Neither in an address, nor in JSON, nor in a query."""
    for form in ("/static/x{}", "/api/images/{}", "/api/images/{}/view", "/api/results/{}/file", "/api/jobs/{}/zip"):
        assert client.get(form.format(id)).status_code in (404, 405), form
    for query in ("known", "result", "folder"):
        assert client.post("/api/images", params={query: id}).status_code in (204, 404)
    image = client.image(encoded(noise()))["id"]
    for asked in ({"image": id, "mask": None}, {"image": image, "mask": id}):
        answer = client.post("/api/jobs", json={"page": client.page(), "kind": "fill", "options": {}, **asked})
        assert answer.status_code == 404
        assert "root:" not in answer.text
    answer = client.post("/api/jobs", json={"page": client.page(), "kind": "fill", "image": ["x"], "mask": {}})
    assert answer.status_code == 404


def test_the_static_folder_is_all_that_is_served(client):
    for path in ("/static/", "/static/..%2fapp.py", "/static/../app.py", "/static//etc/passwd"):
        assert client.get(path).status_code == 404
