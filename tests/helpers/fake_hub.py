"""A hub of models on this machine, with the few addresses of huggingface.co that diffunet asks to pull and push."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """A server that holds repositories and answers at `endpoint` until it is closed.

    Attributes:
        repositories: the files of every repository, name -> {path: bytes}; uploads are added.
        private: whether a repository was made as a private one, name -> bool.
        refused: repositories that answer with an error instead, name -> (HTTP status, X-Error-Code).
        asked: (method, path) of every request so far.
        fetched: paths of the files that were downloaded so far.
        down: whether the hub answers everything with 503.
    """

    def __init__(self):
        self.repositories, self.private, self.refused = {}, {}, {}
        self.asked, self.fetched = [], []
        self.down = False

        class Handler(BaseHTTPRequestHandler):
            hub = self

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.hub.answer(self)

            do_POST = do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        """Stop the server."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request):
        """Answer one request, as huggingface.co would."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        parts = request.path.split("?")[0].strip("/").split("/")
        if parts[0] == "datasets":  # as models, but for the beginning of the addresses of their files
            del parts[0]
        self.asked.append((request.command, request.path))
        if self.down:
            return send(request, 503)
        if parts[:2] == ["api", "repos"]:
            wanted = json.loads(body)
            name, private = f"{wanted['organization']}/{wanted['name']}", wanted.get("private")
            self.repositories[name], self.private[name] = {}, wanted.get("visibility") == "private" or private
            return send(request, 200, {"url": f"{self.endpoint}/{name}"})
        if parts[:2] == ["api", "validate-yaml"]:
            return send(request, 200, {"errors": [], "warnings": []})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if name in self.refused or name not in self.repositories:
            status, code = self.refused.get(name, (401, "RepoNotFound"))
            return send(request, status, headers={"X-Error-Code": code})
        files = self.repositories[name]
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        if parts[0] != "api":  # owner/name/resolve/commit/path
            path = "/".join(parts[4:])
            if path not in files:
                return send(request, 404, headers={"X-Error-Code": "EntryNotFound"})
            if request.command == "GET":
                self.fetched.append(path)
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"'}
            return send(request, 200, files[path], headers)
        action = parts[4] if len(parts) > 4 else "info"
        if action == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            return send(request, 200, entries)
        if action == "preupload":
            answers = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return send(request, 200, {"files": answers})
        if action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            done = {"commitUrl": f"{self.endpoint}/{name}/commit/{commit}", "commitOid": commit, "success": True}
            return send(request, 200, done)
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "sha": commit, "private": bool(self.private.get(name)), "siblings": siblings, "tags": []}
        return send(request, 200, about)


def send(request, status, content=b"", headers=()):
    """Send an answer: bytes as they are, all else as JSON."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    request.send_response(status)
    for key, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
