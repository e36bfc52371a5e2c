"""A small hub on this machine: the HTTP interface that huggingface_hub calls for models.

Files ending in .onnx or .data are "LFS" files, which the hub serves from another address under
their SHA-256; others are served in place, under the SHA-1 of a git blob.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote

Files = dict[str, bytes]


@dataclass
class Repository:
    """A model repository: files by commit, and commits by branch or tag."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Files, ref: str = "main") -> str:
        """Add a commit with these files and no others, and return its name."""
        key = repr((len(self.commits), sorted(files)))
        name = hashlib.sha1(key.encode()).hexdigest()
        self.commits[name] = files
        self.refs[ref] = name
        return name

    @property
    def head(self) -> Files:
        return self.commits[self.refs["main"]]


@dataclass
class Hub:
    """What the server serves, and what it was asked.

    Attributes:
        url: Its address.
        cdn: Its address under another name, as the hub keeps large files on another host.
        repositories: By `OWNER/NAME`.
        token: The only token that it accepts.
        writers: Owners whose repositories that token may write.
        requests: `"METHOD path"` of every request.
        cut: Names of files, and how many of their next transfers end half-way.
        uploads: LFS files by SHA-256.
        small: Names of files that are not LFS files, whatever their extension.
        answer: What every request gets in place of an answer: a status, "loop" or "page".
    """

    url: str = ""
    cdn: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_right"
    writers: tuple[str, ...] = ("me",)
    requests: list[str] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    uploads: dict[str, bytes] = field(default_factory=dict)
    small: tuple[str, ...] = ()
    answer: str = ""

    def transfers(self) -> list[str]:
        """Return the paths of the files whose contents were requested."""
        return [r.split()[1] for r in self.requests if r.startswith(("GET /cdn", "GET /me"))]


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub without repositories while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    hub.cdn = f"http://localhost:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def parse_request(self) -> bool:
        """Read a request, and answer it where the answer is the same for all."""
        if not super().parse_request():
            return False
        if not (answer := self.hub.answer):
            return True
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        has_body = self.command != "HEAD"
        if answer == "loop":
            self._answer(302, b"", {"Location": self.path}, body=has_body)
        elif answer == "page":
            self._answer(200, b"<html>Log in</html>", {"Content-Type": "text/html"}, body=has_body)
        else:
            self._answer(int(answer), b"", {}, body=has_body)
        return False

    def do_HEAD(self) -> None:
        self.hub.requests.append(f"HEAD {self.path}")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self._resolve(*map(unquote, match.groups()), body=False)
        else:
            self._refuse(404)

    def do_GET(self) -> None:
        self.hub.requests.append(f"GET {self.path}")
        if match := re.fullmatch(r"/cdn/(\w+)/(.+)", self.path):
            self._content(self.hub.uploads[match[1]], match[2], match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self._resolve(*map(unquote, match.groups()), body=True)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self.path):
            self._info(match[1], unquote(match[2] or "main"))
        else:
            self._refuse(404)

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", self.path):
            self._paths_info(match[1], unquote(match[2]), body)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            self._preupload(json.loads(body))
        elif match := re.fullmatch(r"/([^/]+/[^/]+).git/info/lfs/objects/batch", self.path):
            self._batch(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            self._commit(match[1], body)
        else:
            self._refuse(404)

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        length = int(self.headers.get("Content-Length", 0))
        data = b"".join(self._chunks()) if chunked else self.rfile.read(length)
        self.hub.uploads[self.path.removeprefix("/upload/")] = data
        self._json({})

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _readable(self, name: str) -> Repository | None:
        """Return a repository that this request may read, or answer with the hub's refusal."""
        repository = self.hub.repositories.get(name)
        given = self.headers.get("Authorization")
        if given is not None and given != f"Bearer {self.hub.token}":
            self._refuse(401, message="Invalid credentials in Authorization header")
            return None
        if repository is None or (repository.private and given is None):
            # The hub does not reveal which of the two it is.
            self._refuse(401 if given is None else 404, "RepoNotFound")
            return None
        if repository.gated:
            self._refuse(403, "GatedRepo")
            return None
        return repository

    def _found(self, name: str, revision: str) -> tuple[str, Files] | None:
        if (repository := self._readable(name)) is None:
            return None
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            self._refuse(404, "RevisionNotFound")
            return None
        return commit, repository.commits[commit]

    def _resolve(self, name: str, revision: str, file: str, *, body: bool) -> None:
        if (found := self._found(name, revision)) is None:
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if (data := files.get(file)) is None:
            self._refuse(404, "EntryNotFound", headers=headers)
        elif self._is_large(file):
            sha256 = hashlib.sha256(data).hexdigest()
            self.hub.uploads[sha256] = data
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256}"'}
            self._answer(302, b"", headers | {"Location": f"{self.hub.cdn}/cdn/{sha256}/{file}"})
        elif body:
            self._content(data, file, _git_hash(data))
        else:
            self._answer(200, data, headers | {"ETag": f'"{_git_hash(data)}"'}, body=False)

    def _content(self, data: bytes, file: str, etag: str) -> None:
        """Send a file, from the byte that is asked for; half of it where the connection is cut."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        rest = data[int(match[1]) :] if match else data
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", f'"{etag}"')
        if match:
            first = len(data) - len(rest)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.hub.cut[file] > 0:
            self.hub.cut[file] -= 1
            rest = rest[: len(rest) // 2]
            self.close_connection = True
        self.wfile.write(rest)

    def _info(self, name: str, revision: str) -> None:
        if found := self._found(name, revision):
            private = self.hub.repositories[name].private
            siblings = [{"rfilename": file} for file in found[1]]
            self._json({"id": name, "sha": found[0], "private": private, "siblings": siblings})

    def _paths_info(self, name: str, revision: str, body: bytes) -> None:
        if (found := self._found(name, revision)) is None:
            return
        listed: list[dict[str, Any]] = []
        for path in parse_qs(body.decode())["paths"]:
            if (data := found[1].get(path)) is None:
                continue
            entry = {"type": "file", "path": path, "size": len(data), "oid": _git_hash(data)}
            if self._is_large(path):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            listed.append(entry)
        self._json(listed)

    def _may_write(self, owner: str | None) -> bool:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._refuse(401, message="Invalid credentials in Authorization header")
        elif owner not in self.hub.writers:
            self._refuse(403, message="You don't have the rights to create a model here")
        else:
            return True
        return False

    def _is_large(self, name: str) -> bool:
        return name.endswith((".onnx", ".data", ".engine")) and name not in self.hub.small

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._may_write(asked["organization"]):
            return
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if name in self.hub.repositories:
            self._json({"url": url}, 409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private=private)
        self.hub.repositories[name].commit({".gitattributes": b""})
        self._json({"url": url})

    def _preupload(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if self._is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self._json({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/upload/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        if not self._may_write(name.split("/")[0]):
            return
        repository = self.hub.repositories[name]
        files = dict(repository.head)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        oid = repository.commit(files)
        self._json({"commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self,
        status: int,
        code: str | None = None,
        message: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        given = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._answer(status, b"", {name: value for name, value in given.items() if value})

    def _answer(
        self, status: int, data: bytes, headers: dict[str, str], *, body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(data)


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
