"""A Hub on this machine: the endpoints that huggingface_hub asks, over repositories in memory.

Large files are LFS ones, as on the Hub: redirected, with their own ETag.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import TOKEN, Hub, Repo, Tree, described, is_large, sibling


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        shared = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        hub.cdn = f"http://localhost:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


PARTS = {"repo": r"[^/]+/[^/]+", "rev": "[^/]+", "path": ".+", "oid": r"\w+"}
"""Of a request's path, by the names under which a handler gets them."""

Answer = Callable[..., None]
ROUTES: list[tuple[list[str], re.Pattern[str], Answer]] = []


def _at(methods: str, path: str) -> Callable[[Answer], Answer]:
    """Where a handler's method answers: ``GET|HEAD`` and a path with PARTS in braces."""
    pattern = re.escape(path)
    for name, part in PARTS.items():
        pattern = pattern.replace(rf"\{{{name}\}}", f"(?P<{name}>{part})")

    def enter(answer: Answer) -> Answer:
        ROUTES.append((methods.split("|"), re.compile(pattern), answer))
        return answer

    return enter


class _Handler(BaseHTTPRequestHandler):
    shared: Hub
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.shared.requests[f"{self.command} {unquote(path)}"] += 1
        try:
            for methods, pattern, answer in ROUTES:
                match = pattern.fullmatch(path)
                if match and self.command in methods:
                    answer(self, **{k: unquote(v) for k, v in match.groupdict().items()})
                    return
            raise Refused(404)
        except Refused as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            self._send(error.status, b"{}", {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *_: object) -> None:
        pass

    # ---- reading -------------------------------------------------------------------------------

    @_at("GET", "/api/models/{repo}")
    @_at("GET", "/api/models/{repo}/revision/{rev}")
    def _info(self, repo: str, rev: str = "") -> None:
        sha, tree = self._read(repo, rev)
        siblings = [sibling(path, data) for path, data in tree.items()]
        self._json({"id": repo, "modelId": repo, "sha": sha, "siblings": siblings})

    @_at("GET", "/api/models/{repo}/tree/{rev}")
    def _tree(self, repo: str, rev: str) -> None:
        _, tree = self._read(repo, rev)
        self._json([described(path, data) for path, data in tree.items()])

    @_at("GET", "/api/models/{repo}/refs")
    def _refs(self, repo: str) -> None:
        self._read(repo, "")
        refs = self.shared.repos[repo].refs.items()
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in refs]
        self._json({"branches": branches, "converts": [], "tags": []})

    @_at("POST", "/api/models/{repo}/paths-info/{rev}")
    def _paths_info(self, repo: str, rev: str) -> None:
        _, tree = self._read(repo, rev)
        paths = parse_qs(self.body.decode())["paths"]
        self._json([described(path, tree[path]) for path in paths if path in tree])

    @_at("HEAD|GET", "/{repo}/resolve/{rev}/{path}")
    def _resolve(self, repo: str, rev: str, path: str) -> None:
        sha, tree = self._read(repo, rev)
        if path not in tree:
            raise Refused(404, "EntryNotFound")
        found = described(path, tree[path])
        headers = {"X-Repo-Commit": sha, "ETag": f'"{found["oid"]}"'}
        if not is_large(path):
            self._contents(path, tree[path], headers)
            return
        linked = {
            "X-Linked-ETag": f'"{found["lfs"]["oid"]}"',
            "X-Linked-Size": str(len(tree[path])),
        }
        self._send(
            302,
            b"",
            {**headers, **linked, "Location": f"{self.shared.cdn}/cdn/{repo}/{sha}/{path}"},
        )

    @_at("HEAD|GET", "/cdn/{repo}/{rev}/{path}")
    def _cdn(self, repo: str, rev: str, path: str) -> None:
        self._contents(path, self.shared.repos[repo].commits[rev][path], {})

    def _contents(self, path: str, data: bytes, headers: Mapping[str, str]) -> None:
        data = self.shared.lies.get(path, data)
        status, begin, end = 200, 0, len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            status, begin = 206, int(asked[1])
            end = min(end, int(asked[2]) + 1 if asked[2] else end)
            headers = {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
            self.shared.ranges[path] += 1
        part = data[begin:end]
        broken = self.command == "GET" and self.shared.drops[path] > 0
        if self.command == "GET":
            self.shared.drops[path] -= broken
            self.shared.sent[path] += len(part)
        self._send(status, part, {**headers, "Accept-Ranges": "bytes"}, broken)

    def _read(self, repo: str, rev: str) -> tuple[str, Tree]:
        found = self.shared.repos.get(repo)
        if found is None or (found.private and not self._writer()):
            raise Refused(404 if self._writer() else 401, "RepoNotFound", "Repository not found")
        if found.gated and not self._writer():
            known = self.headers.get("Authorization")
            raise Refused(403 if known else 401, "GatedRepo", "Access is restricted")
        sha = found.refs.get(rev or "main", rev)
        if sha not in found.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return sha, found.commits[sha]

    # ---- writing -------------------------------------------------------------------------------

    @_at("POST", "/api/repos/create")
    def _create(self) -> None:
        self._check_writer()
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        url = f"{self.shared.url}/{repo}"
        if repo in self.shared.repos:
            self._send(409, json.dumps({"error": "exists", "url": url}).encode(), {})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.shared.repos[repo] = Repo(private=bool(private))
        self.shared.repos[repo].commit("main", {})
        self._json({"url": url, "name": repo, "id": repo})

    @_at("POST", "/api/validate-yaml")
    def _validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    @_at("POST", "/api/models/{repo}/branch/{rev}")
    def _branch(self, repo: str, rev: str) -> None:
        self._check_writer()
        refs = self.shared.repos[repo].refs
        if rev in refs:
            raise Refused(409, message="Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        refs[rev] = refs.get(start, start)
        self._json({})

    @_at("POST", "/api/models/{repo}/preupload/{rev}")
    def _preupload(self, repo: str, rev: str) -> None:
        self._check_writer()
        _, tree = self._read(repo, rev)
        self._json({"files": [
            {
                "path": file["path"], "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": described("", tree[file["path"]])["oid"] if file["path"] in tree else None,
            }
            for file in json.loads(self.body)["files"]
        ]})  # fmt: skip

    @_at("POST", "/{repo}.git/info/lfs/objects/batch")
    def _lfs_batch(self, repo: str) -> None:
        self._check_writer()
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.shared.url}/lfs/{asked['oid']}"}}}
            for asked in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    @_at("PUT", "/lfs/{oid}")
    def _lfs_put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.shared.blobs[oid] = self.body
        self._json({})

    @_at("POST", "/api/models/{repo}/commit/{rev}")
    def _commit(self, repo: str, rev: str) -> None:
        self._check_writer()
        files: dict[str, bytes | None] = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "deletedFile":
                files[value["path"]] = None
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.shared.blobs[value["oid"]]
        sha = self.shared.repos[repo].commit(rev, files)
        self._json({"commitUrl": f"{self.shared.url}/{repo}/commit/{sha}", "commitOid": sha})

    def _writer(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _check_writer(self) -> None:
        if not self._writer():
            raise Refused(401, message="Invalid credentials in Authorization header")

    # ---- answers -------------------------------------------------------------------------------

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], broken: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if broken else body)
        self.close_connection |= broken
