"""A Hub in memory, on a port of this machine, that the real huggingface_hub client takes for one.

It holds models only, keeps every commit, and answers what pushing needs. Large files come by LFS, since Xet is a protocol of
its own: clients must have it disabled (`HubServer.environment`, `HubServer.take_over`).
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

LARGE_SUFFIXES = (".safetensors", ".png", ".bin")  # of files that the Hub wants by LFS


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A model with its history, the newest commit last."""

    private: bool = False
    commits: list[Commit] = field(default_factory=lambda: [Commit("0" * 40, "initial commit", {})])

    @property
    def head(self) -> Commit:
        return self.commits[-1]


@dataclass
class Refusal(Exception):
    """Becomes the answer of a request."""

    status: int
    message: str
    code: str | None = None
    fields: dict = field(default_factory=dict)


class HubServer:
    """Use as a context manager.

    Attributes:
        tokens: Known tokens, and whose they are.
        readers: Tokens that may not write.
        repositories: By owner/name.
        objects: Large files that have arrived, by SHA-256.
        requests: What was asked, as "METHOD path".
        failing: Regular expressions of such requests, and the status that they are refused with.
    """

    def __init__(self):
        self.tokens = {"hf_writer": "owner", "hf_reader": "owner", "hf_stranger": "stranger"}
        self.readers = {"hf_reader"}
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failing: dict[str, int] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home, token="hf_writer"):
        """Variables for a new process to take this server for the Hub; its home is an empty folder."""
        variables = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return variables | {"HF_TOKEN": token, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def take_over(self, monkeypatch, home, token="hf_writer"):
        """Makes this process take this server for the Hub, in `HfApi`s that are made from now on."""
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        constants = {"ENDPOINT": self.url, "HF_HUB_DISABLE_XET": True, "HF_HUB_OFFLINE": False}
        for name, value in (constants | {"HF_TOKEN_PATH": str(home / "token")}).items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    # Answers, one an endpoint

    def whoami(self, token, body):
        rights = "read" if token in self.readers else "write"
        return {"name": self._user(token), "orgs": [], "auth": {"accessToken": {"role": rights}}}

    def create(self, token, body):
        user = self._user(token)
        name = f"{body['organization'] or user}/{body['name']}"
        if token in self.readers or not name.startswith(f"{user}/"):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
        if name in self.repositories:
            raise Refusal(409, "You already created this model repo", fields={"url": f"{self.url}/{name}"})
        self.repositories[name] = Repository(private=body.get("visibility") == "private")
        return {"url": f"{self.url}/{name}"}

    def info(self, token, body, name, revision="main"):
        repository = self._repository(token, name)
        files = [{"rfilename": path} for path in repository.head.files]
        about = {"_id": name, "id": name, "modelId": name, "tags": [], "downloads": 0, "likes": 0, "siblings": files}
        return about | {"sha": repository.head.oid, "private": repository.private}

    def check_rights(self, token, body, name, write=None):
        self._repository(token, name, write=bool(write))
        return {}

    def validate_card(self, token, body):
        if "library_name" not in body["content"]:
            raise Refusal(400, "bad card", fields={"errors": [{"message": '"library_name" is missing'}], "warnings": []})
        return {"errors": [], "warnings": []}

    def preupload(self, token, body, name, revision):
        there = self._repository(token, name, write=True).head.files
        answers = []
        for file in body["files"]:
            path = file["path"]
            large = path.endswith(LARGE_SUFFIXES)
            oid = _oid(there[path], large) if path in there else None
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def large_files(self, token, body, name):
        self._repository(token, name, write=True)
        objects = []
        for wanted in body["objects"]:
            action = {"actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}", "header": {}}}}
            objects.append(wanted | ({} if wanted["oid"] in self.objects else action))
        return {"transfer": "basic", "objects": objects}

    def take_large_file(self, token, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "content and SHA-256 differ")
        self.objects[oid] = body
        return {}

    def commit(self, token, body, name, revision):
        repository = self._repository(token, name, write=True)
        header, *operations = [json.loads(line) for line in body.splitlines()]
        header = header["value"]
        if header.get("parentCommit", repository.head.oid) != repository.head.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.head.files)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = hashlib.sha1(repository.head.oid.encode() + body).hexdigest()
        repository.commits.append(Commit(oid, header["summary"], files))
        return {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid, "success": True}

    def _user(self, token):
        if token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[token]

    def _repository(self, token, name, write=False):
        user, repository = self._user(token), self.repositories.get(name)
        is_owner = name.startswith(f"{user}/")
        if repository is None or (repository.private and not is_owner):
            raise Refusal(404, "Repository not found", code="RepoNotFound")
        if write and (not is_owner or token in self.readers):
            raise Refusal(403, "You don't have the rights to write to this repository")
        return repository


_NAME = r"([\w.-]+/[\w.-]+)"
_ENDPOINTS = [
    ("GET /api/whoami-v2", HubServer.whoami),
    ("POST /api/repos/create", HubServer.create),
    ("POST /api/validate-yaml", HubServer.validate_card),
    (f"GET /api/models/{_NAME}/auth-check(/write)?", HubServer.check_rights),
    (f"GET /api/models/{_NAME}(?:/revision/([^/]+))?", HubServer.info),
    (f"POST /api/models/{_NAME}/preupload/([^/]+)", HubServer.preupload),
    (f"POST /api/models/{_NAME}/commit/([^/]+)", HubServer.commit),
    (f"POST /{_NAME}.git/info/lfs/objects/batch", HubServer.large_files),
    ("PUT /lfs/([0-9a-f]{64})", HubServer.take_large_file),
]


class _Handler(BaseHTTPRequestHandler):
    """Finds the endpoint of a request and sends its answer."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def answer(self):
        content = self._content()
        asked = f"{self.command} {self.path.split('?')[0]}"
        self.hub.requests.append(asked)
        try:
            status, answer, headers = 200, self._answer_to(asked, content), {}
        except Refusal as refusal:
            status, answer = refusal.status, {"error": refusal.message} | refusal.fields
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
        payload = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": len(payload)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(payload)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *arguments):
        pass  # not to stderr, line by line

    def _answer_to(self, asked, content):
        for pattern, status in self.hub.failing.items():
            if re.search(pattern, asked):
                raise Refusal(status, "as the test wants it")
        for pattern, endpoint in _ENDPOINTS:
            if match := re.fullmatch(pattern, asked):
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                is_json = re.search("[/+]json$", self.headers.get("Content-Type", ""))  # and not ndjson
                body = json.loads(content) if is_json else content
                return endpoint(self.hub, token, body, *(group for group in match.groups() if group is not None))
        raise Refusal(404, f"this server does not know {asked}")

    def _content(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


def _oid(content, large):
    """As git has it for a file of its own, as LFS has it for a large one."""
    return hashlib.sha256(content).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
