"""A hub on loopback that serves a folder of repositories: what the hub's client asks of the real one for a download."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`requests` notes (method, path, Range header); `cut` ends each of the next answers after so many bytes; `spoil` is
    put at the beginning of the files of these names; `lies` takes the place of what is told about a repository."""

    def __init__(self, root: Path):
        self.root, self.requests, self.cut, self.spoil, self.lies = root, [], [], {}, {}


@contextlib.contextmanager
def serve(root: Path):
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, body):
            path = self.path.split("?")[0]
            hub.requests.append((self.command, path, self.headers.get("Range")))
            if path.startswith("/api/models/"):
                parts = path.removeprefix("/api/models/").split("/")
                folder = hub.root / parts[0] / parts[1]
                if not folder.is_dir():
                    return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
                content = json.dumps(describe(folder, "/".join(parts[:2])) | hub.lies).encode()
                return self.send(200, content, {"Content-Type": "application/json"}, body)
            owner, name, *_, file = path.strip("/").split("/")
            target = hub.root / owner / name / file
            if not target.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)
            content = target.read_bytes()
            headers = {"ETag": f'"{etag(content, file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if file in hub.spoil:
                content = hub.spoil[file] + content[len(hub.spoil[file]) :]
            status = 200
            if body and self.headers.get("Range"):
                first = int(self.headers["Range"].split("=")[1].split("-")[0])
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                content, status = content[first:], 206
            self.send(status, content, headers, body)

        def send(self, status, content, headers, body):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body and hub.cut and len(content) > hub.cut[0]:
                self.wfile.write(content[: hub.cut.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
            elif body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()


def describe(folder: Path, name: str) -> dict:
    files = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        entry = {"rfilename": path.name, "size": len(content), "blobId": git_blob(content)}
        if is_large(path.name):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        files.append(entry)
    return {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": files}


def etag(content: bytes, name: str) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(name) else git_blob(content)


def is_large(name: str) -> bool:
    return name.endswith((".bin", ".safetensors", ".model"))


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
