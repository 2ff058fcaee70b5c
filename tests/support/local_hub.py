"""A stand-in of the hub's HTTP interface on the loopback address: what loading and pushing a model needs of it."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class LocalHub(ThreadingHTTPServer):
    """Repositories by name; each has branches, and commits with all their files.

    Attributes:
        requests: what was asked, as ``"METHOD path"``.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.commits, self.branches, self.requests = {}, {}, []

    def commit(self, repo, files, branch="main"):
        """Add a commit with these files, by name, beside those of the branch. Returns its hash."""
        before = self.commits.get(self.branches.get((repo, branch)), {})
        content = before | files
        sha = hashlib.sha1(repr((repo, branch, sorted(content.items()), len(self.commits))).encode()).hexdigest()
        self.commits[sha] = content
        self.branches[repo, branch] = sha
        return sha

    def find(self, repo, revision):
        """The commit of a branch, or a commit itself; None if there is neither."""
        sha = self.branches.get((repo, revision), revision)
        return sha if sha in self.commits else None


@contextmanager
def local_hub():
    with LocalHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        path = unquote(self.path.partition("?")[0])
        if info := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repo, sha = info[1], self.server.find(info[1], info[2] or "main")
            names = [{"rfilename": name} for name in self.server.commits.get(sha, {})]
            return self.found(sha, {"id": repo, "modelId": repo, "sha": sha, "siblings": names, "tags": []})
        if tree := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            sha = self.server.find(tree[1], tree[2])
            files = self.server.commits.get(sha, {}).items()
            return self.found(
                sha,
                [{"type": "file", "path": name, "size": len(data), "oid": _etag(data)} for name, data in files],
            )
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            sha = self.server.find(file[1], file[2])
            if sha is None or file[3] not in self.server.commits[sha]:
                return self.missing("EntryNotFound" if sha else "RevisionNotFound")
            data = self.server.commits[sha][file[3]]
            return self.send(data, "application/octet-stream", {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": sha})
        return self.missing("RepoNotFound")

    do_HEAD = do_GET

    def do_POST(self):
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.partition("?")[0])
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            if (repo, "main") not in self.server.branches:
                self.server.commit(repo, {".gitattributes": b""})
            return self.json({"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})
        if branch := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
            self.server.branches[branch[1], branch[2]] = self.server.branches[branch[1], "main"]
            return self.json({})
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/.+", path):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.json({"files": files})
        if commit := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            content = {one["path"]: base64.b64decode(one["content"]) for one in files}
            sha = self.server.commit(commit[1], content, commit[2])
            url = f"{self.server.url}/{commit[1]}/commit/{sha}"
            return self.json({"success": True, "commitUrl": url, "commitOid": sha})
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        return self.missing("RepoNotFound")

    def found(self, sha, values):
        return self.json(values) if sha else self.missing("RevisionNotFound")

    def json(self, values):
        self.send(json.dumps(values).encode(), "application/json", {})

    def missing(self, code):
        self.send(b"", "text/plain", {"X-Error-Code": code, "X-Error-Message": code}, 404)

    def send(self, body, kind, headers, status=200):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def _etag(data):
    return hashlib.sha1(data).hexdigest()
