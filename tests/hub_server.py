"""A small model hub on 127.0.0.1 that speaks the file protocol of huggingface.co, for tests with the real client.

It serves repositories held in memory: HEAD and GET of files with ETag and commit, large files by a redirect to a second
port (the CDN) with ranges, private and gated repositories, renamed ones, and pushes (create, branch, pre-upload, LFS
upload and verify, commit, pull request). Faults are switched by attributes; every request is logged in `requests`.
Protocol: huggingface_hub's `file_download.py`, `_commit_api.py` and `lfs.py` (0.34 to 2.x), and the Git LFS batch API.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_SUFFIXES = (".safetensors", ".bin", ".h5", ".msgpack")


class Request(NamedTuple):
    """One request as it came in, the path unquoted and without its query."""

    method: str
    path: str
    headers: dict[str, str]  # keys in lower case
    cdn: bool


@dataclass
class Repo:
    """The commits of one repository, each a whole tree, and the branches and tags that point at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Make `files` the whole content of a branch; returns the commit's hash."""
        names = "".join(f"{name}{hashlib.sha1(data).hexdigest()}" for name, data in sorted(files.items()))
        sha = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs[branch] = sha
        return sha


class _Refusal(Exception):
    """An error answer: status, the hub's error code and its message."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, code, message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url`; `stop` and `start` keep the port and the repositories."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.tokens = {"hf_reader": "read", "hf_writer": "write"}
        self.admitted: set[str] = set()  # the tokens that accepted the gated repositories' conditions
        self.stored: dict[str, bytes] = {}  # large files by SHA-256, as pushed
        self.requests: list[Request] = []
        self.unexpected: list[str] = []  # what no route knows: a test that meets one fails at `stop`
        self.reset_faults()
        self._ports = [0, 0]
        self._servers: list[ThreadingHTTPServer] = []

    def reset_faults(self) -> None:
        """Serve as a hub in good health does."""
        self.break_after_bytes: int | None = None  # the body's first bytes arrive, then the connection is closed
        self.breaks = 1  # how many answers `break_after_bytes` spoils
        self.lie_about_size = 0  # added to the announced size of large files
        self.fail_with: int | None = None  # this status for every request
        self.forget_headers = False  # no ETag, no commit: what a captive portal or a plain web server answers
        self.before: Callable[[Request], None] = lambda request: None  # called with each request before its answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._ports[0]}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self._ports[1]}"  # another host: some clients tell hosts apart without the port

    def asked(self, method: str = "GET", *, cdn: bool | None = None) -> list[str]:
        """The file names (last path component) asked for by `method`, in order, `/api/` calls left out."""
        return [
            request.path.rsplit("/", 1)[-1]
            for request in self.requests
            if request.method == method and "/api/" not in request.path and cdn in (None, request.cdn)
        ]

    def start(self) -> HubServer:
        for place, port in enumerate(self._ports):
            handler = type("Handler", (_Handler,), {"hub": self, "cdn": place == 1})
            server = _Server(("127.0.0.1", port), handler)
            self._ports[place] = server.server_address[1]
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers.clear()
        if self.unexpected:
            raise AssertionError(f"requests the server has no route for, or failed on: {self.unexpected}")

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of the test's business; the handler itself reports all else."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    cdn: bool
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self) -> None:
        self.body = self._read_body()
        self.raw_path, self.query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        headers = {key.lower(): value for key, value in self.headers.items()}
        request = Request(self.command, unquote(self.raw_path), headers, self.cdn)
        if not request.path.startswith("/api/agent-"):  # what clients ask for their User-Agent: no test's business
            self.hub.requests.append(request)
            self.hub.before(request)
        token = headers.get("authorization", "").removeprefix("Bearer ")
        self.token, self.role = token, self.hub.tokens.get(token)
        try:
            if self.hub.fail_with is not None:
                raise _Refusal(self.hub.fail_with, "", "The hub is having a bad day")
            self._route()
        except _Refusal as refusal:
            self._answer(refusal.status, {"error": refusal.message}, refusal.headers)
        except ConnectionError:
            self.close_connection = True
        except Exception as error:
            self.hub.unexpected.append(f"{self.command} {self.path}: {error!r}")
            self._answer(500, {"error": repr(error)})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _route(self) -> None:
        for method, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, self.raw_path)
            if match and self.command in method:
                return handle(self, **{key: unquote(value) for key, value in match.groupdict().items()})
        raise LookupError("no such route")

    def _answer(self, status: int, content: Any = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer; `content` is bytes, or anything JSON can say."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.hub.break_after_bytes
        if limit is not None and limit < len(data) and self.hub.breaks > 0 and status in (200, 206):
            self.hub.breaks -= 1
            self.wfile.write(data[:limit])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(data)

    # Who may see what

    def _repo(self, name: str, *, files: bool = False) -> Repo:
        """The repository, or the refusal that the hub gives this token; `files` asks for more than its existence."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.role is None):
            status, message = (
                (401, "Invalid username or password.") if self.role is None else (404, "Repository not found")
            )
            raise _Refusal(status, "RepoNotFound", message)
        if files and repo.gated and self.token not in self.hub.admitted:
            raise _Refusal(403 if self.role else 401, "GatedRepo", f"Access to model {name} is restricted.")
        return repo

    def _sha(self, repo: Repo, revision: str) -> str:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _writer(self) -> None:
        if self.role != "write":
            status = 401 if self.role is None else 403
            raise _Refusal(status, "", "You don't have the rights to write under this namespace")

    # Downloads

    def _file(self, repo: str, revision: str, path: str) -> None:
        if repo in self.hub.renamed:
            target = self.raw_path.replace(repo, self.hub.renamed[repo], 1)
            return self._answer(307, b"", {"Location": target})
        found = self._repo(repo, files=True)
        sha = self._sha(found, revision)
        data = found.commits[sha].get(path)
        if data is None:
            raise _Refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        if self.hub.forget_headers:
            return self._answer(200, b"<html>Please log in to the network</html>")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_git_oid(data)}"', "Accept-Ranges": "bytes"}
        if not path.endswith(LARGE_SUFFIXES):
            return self._body(data, headers)
        oid = hashlib.sha256(data).hexdigest()
        self.hub.stored[oid] = data
        size = len(data) + self.hub.lie_about_size
        headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(size)}
        return self._answer(302, b"", {**headers, "Location": f"{self.hub.cdn}/{oid}/{path.rsplit('/', 1)[-1]}"})

    def _blob(self, oid: str, name: str) -> None:
        self._body(self.hub.stored[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _body(self, data: bytes, headers: Mapping[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None:
            return self._answer(200, data, headers)
        start = int(wanted[1])
        if start >= len(data):
            raise _Refusal(416, "", "Range not satisfiable", {"Content-Range": f"bytes */{len(data)}"})
        span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        return self._answer(206, data[start:], {**headers, **span})

    def _info(self, repo: str, revision: str = "main") -> None:
        found = self._repo(repo)
        sha = self._sha(found, revision)
        siblings = [{"rfilename": name} for name in sorted(found.commits[sha])]
        self._answer(200, {"id": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []})

    def _tree(self, repo: str, revision: str) -> None:
        found = self._repo(repo)
        files = sorted(found.commits[self._sha(found, revision)].items())
        rows = [{"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)} for name, data in files]
        self._answer(200, rows)

    # Pushes

    def _create(self) -> None:
        self._writer()
        asked = json.loads(self.body)
        name = f"{asked['organization'] or 'user'}/{asked['name']}"
        exists = name in self.hub.repos
        if not exists:
            self.hub.repos[name] = Repo(private=bool(asked.get("private") or asked.get("visibility") == "private"))
            self.hub.repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._answer(409 if exists else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _branch(self, repo: str, revision: str) -> None:
        self._writer()
        refs = self._repo(repo).refs
        exists = revision in refs
        refs.setdefault(revision, refs["main"])
        self._answer(409 if exists else 200, {"error": "Reference already exists"} if exists else {})

    def _preupload(self, repo: str, revision: str) -> None:
        self._writer()
        found = self._repo(repo)
        present = found.commits[self._sha(found, revision)]
        answer = []
        for name in (file["path"] for file in json.loads(self.body)["files"]):
            mode = "lfs" if name.endswith(LARGE_SUFFIXES) else "regular"
            oid = None if name not in present else _oid(name, present[name])
            answer.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer(200, {"files": answer})

    def _batch(self, repo: str) -> None:
        self._writer()
        objects = []
        for item in json.loads(self.body)["objects"]:
            steps = {
                "upload": {"href": f"{self.hub.cdn}/{item['oid']}/upload"},
                "verify": {"href": f"{self.hub.url}/api/lfs-verify"},
            }
            objects.append(item if item["oid"] in self.hub.stored else {**item, "actions": steps})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str, name: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, "", "The content does not match its SHA-256")
        self.hub.stored[oid] = self.body
        self._answer(200)

    def _verify(self) -> None:
        item = json.loads(self.body)
        if len(self.hub.stored.get(item["oid"], b"")) != item["size"]:
            raise _Refusal(400, "", "The upload is incomplete")
        self._answer(200)

    def _commit(self, repo: str, revision: str) -> None:
        self._writer()
        found = self._repo(repo)
        files = dict(found.commits[self._sha(found, revision)])
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        number = 1 + sum(ref.startswith("refs/pr/") for ref in found.refs)
        branch = f"refs/pr/{number}" if "create_pr" in self.query else revision
        sha, base = found.commit(files, branch), f"{self.hub.url}/{repo}"
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{base}/commit/{sha}"}
        self._answer(200, {**answer, "pullRequestUrl": f"{base}/discussions/{number}"})


_ID, _REV = r"(?P<repo>[^/]+(/[^/]+)?)", r"(?P<revision>[^/]+)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("HEAD GET", rf"/{_ID}/resolve/{_REV}/(?P<path>.+)", _Handler._file),
    ("GET", r"/(?P<oid>[0-9a-f]{64})/(?P<name>[^/]+)", _Handler._blob),
    ("PUT", r"/(?P<oid>[0-9a-f]{64})/(?P<name>upload)", _Handler._store),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/lfs-verify", _Handler._verify),
    ("GET", r"/api/agent-harnesses", lambda handler: handler._answer(404)),
    ("GET", rf"/api/models/{_ID}/revision/{_REV}", _Handler._info),
    ("GET", rf"/api/models/{_ID}/tree/{_REV}", _Handler._tree),
    ("POST", rf"/api/models/{_ID}/branch/{_REV}", _Handler._branch),
    ("POST", rf"/api/models/{_ID}/preupload/{_REV}", _Handler._preupload),
    ("POST", rf"/api/models/{_ID}/commit/{_REV}", _Handler._commit),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler._batch),
    ("GET", rf"/api/models/{_ID}", _Handler._info),
]


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _oid(name: str, data: bytes) -> str:
    """How a commit names a file's content: by SHA-256 when it is large, else as Git does."""
    return hashlib.sha256(data).hexdigest() if name.endswith(LARGE_SUFFIXES) else _git_oid(data)


def client_environment(server: HubServer, home: Path) -> dict[str, str]:
    """The environment of a process whose huggingface_hub knows this server only and keeps its cache in `home`."""
    foreign = ("HF_", "HUGGING", "HTTP", "ALL_PROXY", "XDG_")
    clean = {key: value for key, value in os.environ.items() if not key.upper().startswith(foreign)}
    own = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return {**clean, **own, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1,localhost"}
