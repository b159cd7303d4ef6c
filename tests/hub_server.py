"""A Hub in memory, on a port of this machine, that the real huggingface_hub, transformers and datasets clients take for one.

It holds models and data sets with every commit and branch, answers what pushing, loading and streaming need, and fails where a
test wants it. Large files come by LFS, since Xet is a protocol of its own: clients must have it disabled
(`HubServer.environment`, `HubServer.take_over`).
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import RLock, Thread
from urllib.parse import parse_qs, unquote

import yaml

LARGE_SUFFIXES = (
    ".safetensors",
    ".png",
    ".bin",
    ".parquet",
)  # of files that the Hub wants by LFS, as long as no test changes it


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]
    author: str = "owner"


@dataclass
class Repository:
    """A model or data set: each branch is its history, the newest commit last; a pull request is a branch of its own."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("0" * 40, "initial commit", {})]})

    @property
    def commits(self) -> list[Commit]:
        return self.branches["main"]

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        """The commit of a branch or a hash."""
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise Refusal(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


@dataclass
class Answer:
    status: int = 200
    content: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """Becomes the answer of a request."""

    def __init__(self, status, message, code=None, fields=None, headers=None):
        self.answer = Answer(
            status,
            json.dumps({"error": message} | (fields or {})).encode(),
            {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {}),
        )


@dataclass
class Fault:
    """What goes wrong with requests.

    Attributes:
        pattern: Regular expression of "METHOD path"; it need not match from the start.
        status: Of the answer, in place of what was asked for.
        code: Of the Hub for that, such as GatedRepo.
        retry_after_s: That the answer asks for.
        html: Whether the answer is a page, as those of a gateway are.
        drop: Close the connection without an answer: "during" the upload, "before" doing what was asked, or "after"; or
            "halfway" through the answer.
        seconds: To wait before all else.
        action: Called before all else.
        times: How often it happens.
        skip: How many matching requests go well before.
    """

    pattern: str
    status: int | None = None
    code: str | None = None
    retry_after_s: int | None = None
    html: bool = False
    drop: str | None = None
    seconds: float = 0.0
    action: Callable[[], None] | None = None
    times: float = float("inf")
    skip: int = 0


class HubServer:
    """Use as a context manager.

    Attributes:
        tokens: Known tokens, and whose they are.
        readers: Tokens that may not write.
        repositories: Models by owner/name, data sets by datasets/owner/name, Spaces by spaces/owner/name.
        variables: Of Spaces by their name.
        sdks: Of Spaces by their name.
        objects: Large files that have arrived, by SHA-256.
        requests: What was asked, as "METHOD path".
        ranges: The part of its answer that a request asked for last.
        faults: What goes wrong.
    """

    def __init__(self):
        self.tokens = {"hf_writer": "owner", "hf_reader": "owner", "hf_stranger": "stranger"}
        self.readers = {"hf_reader"}
        self.repositories: dict[str, Repository] = {}
        self.variables: dict[str, dict[str, str]] = {}
        self.sdks: dict[str, str | None] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.ranges: dict[str, str | None] = {}
        self.faults: list[Fault] = []
        self.lock = RLock()  # one request at a time, as if each were a transaction
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
        constants = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # or the one that it has made stays with the real Hub

    def add(self, name, files, private=False):
        """Adds a repository with these files."""
        repository = self.repositories[name] = Repository(private)
        self.commit_to(repository, files)
        return repository

    def commit_to(self, repository, files, branch="main", message="by hand"):
        """What somebody else does: None removes a file."""
        with self.lock:
            before = repository.branches[branch][-1]
            merged = {path: content for path, content in (before.files | files).items() if content is not None}
            oid = hashlib.sha1(f"{before.oid} {message} {sorted(files)}".encode()).hexdigest()
            repository.branches[branch].append(Commit(oid, message, merged))

    # Answers, one an endpoint. `kind` is "models", "datasets" or "spaces".

    def whoami(self, ask):
        rights = "read" if ask.token in self.readers else "write"
        return {"name": self._user(ask), "orgs": [], "auth": {"accessToken": {"role": rights}}}

    def create(self, ask):
        user, body = self._user(ask), ask.json()
        name = f"{body.get('organization') or user}/{body['name']}"
        kind = f"{body.get('type') or 'model'}s"
        if ask.token in self.readers or not name.startswith(f"{user}/"):
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {name.split('/')[0]}")
        if _key(kind, name) in self.repositories:
            raise Refusal(409, "You already created this model repo", fields={"url": f"{self.url}/{name}"})
        self.repositories[_key(kind, name)] = Repository(private=body.get("visibility") == "private")
        if kind == "spaces":
            self.sdks[name] = body.get("sdk")
        return {"url": f"{self.url}/{name}"}

    def info(self, ask, kind, name, revision="main"):
        repository = self._repository(ask, kind, name)
        commit = repository.at(revision)
        files = [{"rfilename": path} for path in commit.files]
        about = {"_id": name, "id": name, "modelId": name, "tags": [], "downloads": 0, "likes": 0, "siblings": files}
        about |= {"sha": commit.oid, "private": repository.private, "author": name.split("/")[0], "lastModified": _DATE}
        card = _front_matter(commit.files.get("README.md", b"").decode())
        return about | ({"cardData": card} if card else {})

    def variables_of(self, ask, name):
        self._repository(ask, "spaces", name, write=True)
        variables = self.variables.setdefault(name, {})
        match ask.json():
            case {"key": key, "value": value}:
                variables[key] = value
            case {"key": key}:
                del variables[key]
        return {key: {"key": key, "value": value, "updatedAt": _DATE} for key, value in variables.items()}

    def refs(self, ask, kind, name):
        branches = self._repository(ask, kind, name).branches
        told = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid} for name, commits in branches.items()
        ]
        return {"branches": told, "tags": [], "converts": []}

    def check_rights(self, ask, kind, name, write=None):
        self._repository(ask, kind, name, write=bool(write))
        return {}

    def validate_card(self, ask):
        needed = "sdk" if ask.json().get("repoType") == "space" else "library_name"
        if needed not in ask.json()["content"]:
            raise Refusal(400, "bad card", fields={"errors": [{"message": f'"{needed}" is missing'}], "warnings": []})
        return {"errors": [], "warnings": []}

    def tree(self, ask, kind, name, revision, folder=""):
        files = self._repository(ask, kind, name).at(revision).files
        folder = folder.strip("/")
        inside = {path: content for path, content in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not inside:
            raise Refusal(404, f"{folder} does not exist on {revision}", code="EntryNotFound")
        if ask.query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return [_entry(path, content) for path, content in inside.items()]
        start = len(folder) + 1 if folder else 0
        here = {path[:start] + path[start:].split("/")[0]: None for path in inside}
        folders = [path for path in here if path not in files]
        return [_entry(path, files[path]) for path in here if path in files] + [_folder(path) for path in folders]

    def paths_info(self, ask, kind, name, revision):
        files = self._repository(ask, kind, name).at(revision).files
        asked = ask.json()["paths"] if ask.is_json else parse_qs(ask.content.decode())["paths"]
        entries = []
        for path in asked:
            if path in files:
                entries.append(_entry(path, files[path]))
            elif any(other.startswith(f"{path}/") for other in files):
                entries.append(_folder(path))
        return entries

    def resolve(self, ask, name, revision, path, kind="models"):
        commit = self._repository(ask, kind, name).at(unquote(revision))
        path = unquote(path)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit.oid})
        content = commit.files[path]
        oid = _oid(content, path.endswith(LARGE_SUFFIXES))
        headers = {"ETag": f'"{oid}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path.endswith(LARGE_SUFFIXES):
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", ask.headers.get("Range", ""))
        if asked is None:
            return Answer(200, content, headers)
        first, last = (int(asked[1]) if asked[1] else len(content) - int(asked[2])), int(asked[2] or len(content) - 1)
        last = min(last, len(content) - 1) if asked[1] else len(content) - 1
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Answer(206, content[first : last + 1], headers)

    def discussions(self, ask, kind, name):
        """Pull requests, all of them open."""
        branches = self._repository(ask, kind, name).branches
        proposed = {branch: commits[-1] for branch, commits in branches.items() if branch.startswith("refs/pr/")}
        author = ask.query.get("author", [None])[0]
        told = [
            {
                "num": int(branch.removeprefix("refs/pr/")),
                "title": commit.message,
                "author": {"name": commit.author},
                "createdAt": _DATE,
                "status": "open",
                "repo": {"name": name, "type": kind.removesuffix("s")},
                "isPullRequest": True,
            }
            for branch, commit in proposed.items()
            if author in (None, commit.author)
        ]
        return {"discussions": told, "count": len(told), "start": 0}

    def make_branch(self, ask, kind, name, branch):
        repository = self._repository(ask, kind, name, write=True)
        if branch in repository.branches:
            raise Refusal(409, "Reference already exists")
        repository.branches[branch] = [repository.at((ask.json() or {}).get("startingPoint", "main"))]
        return {}

    def preupload(self, ask, kind, name, revision):
        there = self._repository(ask, kind, name, write=ask.write_unless_proposed).at(revision).files
        answers = []
        for file in ask.json()["files"]:
            path = file["path"]
            large = path.endswith(LARGE_SUFFIXES)
            oid = _oid(there[path], large) if path in there else None
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def large_files(self, ask, kind, name):
        self._repository(ask, (kind or "models/")[:-1], name)  # who proposes a change sends files, too
        objects = []
        for wanted in ask.json()["objects"]:
            action = {"actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}", "header": {}}}}
            objects.append(wanted | ({} if wanted["oid"] in self.objects else action))
        return {"transfer": "basic", "objects": objects}

    def take_large_file(self, ask, oid):
        if hashlib.sha256(ask.content).hexdigest() != oid:
            raise Refusal(400, "content and SHA-256 differ")
        self.objects[oid] = ask.content
        return {}

    def commit(self, ask, kind, name, revision):
        repository = self._repository(ask, kind, name, write=ask.write_unless_proposed)
        if ask.token in self.readers:
            raise Refusal(403, "Your token may only read")
        if revision not in repository.branches:
            raise Refusal(400, f"{revision} is no branch")
        header, *operations = [json.loads(line) for line in ask.content.splitlines()]
        header = header["value"]
        parent = repository.at(revision)
        proposed = not ask.write_unless_proposed
        if not proposed and header.get("parentCommit", parent.oid) != parent.oid:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = hashlib.sha1(parent.oid.encode() + ask.content).hexdigest()
        made = Commit(oid, header["summary"], files, self._user(ask))
        answer = {"commitUrl": f"{self.url}/{_key(kind, name)}/commit/{oid}", "commitOid": oid, "success": True}
        if not proposed:
            repository.branches[revision].append(made)
            return answer
        number = sum(branch.startswith("refs/pr/") for branch in repository.branches) + 1
        repository.branches[f"refs/pr/{number}"] = [*repository.branches[revision], made]
        return answer | {"pullRequestUrl": f"{self.url}/{name}/discussions/{number}"}

    def _user(self, ask):
        if ask.token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[ask.token]

    def _repository(self, ask, kind, name, write=False):
        user = self._user(ask) if ask.token or write else None  # whoever has none may read what is public
        repository = self.repositories.get(_key(kind, name))
        is_owner = name.startswith(f"{user}/")
        if repository is None or (repository.private and not is_owner):
            raise Refusal(404, "Repository not found", code="RepoNotFound")
        if write and (not is_owner or ask.token in self.readers):
            raise Refusal(403, "You don't have the rights to write to this repository")
        return repository


_DATE = "2026-01-01T00:00:00.000Z"
_NAME = r"([\w.-]+/[\w.-]+)"
_KIND = "(models|datasets|spaces)"
_ENDPOINTS = [
    ("GET /api/whoami-v2", HubServer.whoami),
    ("POST /api/repos/create", HubServer.create),
    ("POST /api/validate-yaml", HubServer.validate_card),
    (f"GET /api/{_KIND}/{_NAME}/auth-check(/write)?", HubServer.check_rights),
    (f"GET /api/{_KIND}/{_NAME}(?:/revision/([^/]+))?", HubServer.info),
    (f"GET /api/{_KIND}/{_NAME}/refs", HubServer.refs),
    (f"GET /api/{_KIND}/{_NAME}/tree/([^/]+)(/.*)?", HubServer.tree),
    (f"POST /api/{_KIND}/{_NAME}/paths-info/([^/]+)", HubServer.paths_info),
    (f"GET /api/{_KIND}/{_NAME}/discussions", HubServer.discussions),
    (f"POST /api/{_KIND}/{_NAME}/branch/(.+)", HubServer.make_branch),
    (f"POST /api/{_KIND}/{_NAME}/preupload/([^/]+)", HubServer.preupload),
    (f"POST /api/{_KIND}/{_NAME}/commit/([^/]+)", HubServer.commit),
    (f"POST /((?:spaces/)?){_NAME}.git/info/lfs/objects/batch", HubServer.large_files),
    ("PUT /lfs/([0-9a-f]{64})", HubServer.take_large_file),
    (f"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", HubServer.resolve),
    (
        f"(?:GET|HEAD) /(datasets|spaces)/{_NAME}/resolve/([^/]+)/(.+)",
        lambda hub, ask, kind, name, revision, path: hub.resolve(ask, name, revision, path, kind),
    ),
    (f"(?:GET|POST|DELETE) /api/spaces/{_NAME}/variables", HubServer.variables_of),
]


@dataclass
class _Request:
    token: str
    headers: dict
    query: dict
    content: bytes

    @property
    def is_json(self):
        return bool(re.search("[/+]json", self.headers.get("Content-Type", "")))  # and not ndjson

    @property
    def write_unless_proposed(self):
        """Whether the right to write is needed: a pull request may be opened by all who may read."""
        return self.query.get("create_pr") != ["1"]

    def json(self):
        return json.loads(self.content or b"null")


class _Handler(BaseHTTPRequestHandler):
    """Finds the endpoint of a request and sends its answer."""

    protocol_version = "HTTP/1.1"
    hub: HubServer

    def answer(self):
        path, _, query = self.path.partition("?")
        asked = f"{self.command} {path}"
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.requests.append(asked)
        self.hub.ranges[asked] = self.headers.get("Range")
        fault = self._next_fault(asked)
        if fault and fault.drop == "during":
            if self.command in ("POST", "PUT"):
                self.rfile.read1(16)  # of what is on its way
            self.close_connection = True
            return
        content = self._content()
        if fault:
            time.sleep(fault.seconds)
            if fault.action:
                fault.action()
        if fault and fault.drop == "before":
            self.close_connection = True
            return
        try:
            if fault and fault.status:
                headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
                raise Refusal(fault.status, "as the test wants it", fault.code, headers=headers)
            with self.hub.lock:
                answer = self._answer_to(asked, _Request(token, self.headers, parse_qs(query), content))
        except Refusal as refusal:
            answer = refusal.answer
            if fault and fault.html:
                answer = Answer(answer.status, b"<html>Bad gateway</html>", {"Content-Type": "text/html"})
        if fault and fault.drop == "after":
            self.close_connection = True
            return
        self.send_response(answer.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(answer.content))} | answer.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if fault and fault.drop == "halfway":
                self.close_connection = True
                self.wfile.write(answer.content[: len(answer.content) // 2])
                return
            self.wfile.write(answer.content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *arguments):
        pass  # not to stderr, line by line

    def _next_fault(self, asked):
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and re.search(fault.pattern, asked):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def _answer_to(self, asked, request):
        for pattern, endpoint in _ENDPOINTS:
            if match := re.fullmatch(pattern, asked):
                answer = endpoint(self.hub, request, *(unquote(group) for group in match.groups() if group is not None))
                return answer if isinstance(answer, Answer) else Answer(content=json.dumps(answer).encode())
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


def _key(kind, name):
    return name if kind == "models" else f"{kind}/{name}"


def _entry(path, content):
    large = path.endswith(LARGE_SUFFIXES)
    entry = {"type": "file", "path": path, "size": len(content), "oid": _oid(content, False)}
    return entry | ({"lfs": {"oid": _oid(content, True), "size": len(content), "pointerSize": 134}} if large else {})


def _front_matter(card):
    """The metadata on top of a card; None if it has none."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def _folder(path):
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _oid(content, large):
    """As git has it for a file of its own, as LFS has it for a large one."""
    return hashlib.sha256(content).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
