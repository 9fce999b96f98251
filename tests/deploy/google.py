"""A stand-in for Google's APIs: a server on loopback that stores what gcloud sends.

One server stands in for all services, because their paths do not overlap. It stores resources as
they are sent, and adds the fields that gcloud reads in the answers. Firestore's indexes are being
built until `finish_building` is called. `changes` are the requests that changed something. A
request whose method and path contain one of `failures` is answered 403.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.deploy.logging_query import matches

NUMBER = "123456789012"
_READING_POSTS = (
    ":getIamPolicy", ":generateUploadUrl", ":testIamPermissions", "entries:list",
    ":runAggregationQuery",
)  # fmt: skip
_DONE = {"name": "operations/done", "done": True}

SERVICES = (
    "SERVICEUSAGE", "IAM", "SECRETMANAGER", "FIRESTORE", "CLOUDFUNCTIONS", "RUN", "LOGGING",
    "MONITORING", "CLOUDRESOURCEMANAGER", "CLOUDBUILD", "ARTIFACTREGISTRY", "PUBSUB",
    "CLOUDSCHEDULER",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One request that gcloud made."""

    method: str
    path: str
    query: dict[str, str]
    body: Any

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(slots=True)
class Google:
    """The state of the server."""

    url: str
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    enabled: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    unknown: list[Request] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    entries: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def changes(self) -> list[Request]:
        """Requests that changed something."""
        return [
            request
            for request in self.requests
            if request.method != "GET"
            and not request.path.endswith(_READING_POSTS)
            and not request.path.startswith("/upload")
        ]

    def answer(self, request: Request) -> tuple[int, Any]:
        """Answer a request: the status and the body."""
        with self.lock:
            self.requests.append(request)
            if any(failure in str(request) for failure in self.failures):
                return _error(403, "PERMISSION_DENIED", "The caller does not have permission")
            for pattern, handler in _ROUTES:
                if found := re.fullmatch(pattern, f"{request.method} {request.path}"):
                    return handler(self, request, *found.groups())
            self.unknown.append(request)
            # Not 501, because gcloud would retry the request for half a minute.
            return _error(400, "INVALID_ARGUMENT", f"not known here: {request}")

    def finish_building(self) -> None:
        """Finish building Firestore's indexes."""
        for held in self.resources.values():
            for index in (held, *held.get("indexConfig", {}).get("indexes", ())):
                if index.get("state") == "CREATING":
                    index["state"] = "READY"
            if "ttlConfig" in held:
                held["ttlConfig"] = {"state": "ACTIVE"}


def _error(status: int, name: str, message: str) -> tuple[int, Any]:
    return status, {"error": {"code": status, "status": name, "message": message}}


def _absent(path: str) -> tuple[int, Any]:
    return _error(404, "NOT_FOUND", f"Resource not found: {path}")


_Handler = Callable[..., tuple[int, Any]]


def _get(google: Google, request: Request, path: str) -> tuple[int, Any]:
    found = google.resources.get(path)
    return (200, found) if found is not None else _absent(path)


def _put(google: Google, request: Request, path: str) -> tuple[int, Any]:
    if path in google.resources:
        return _error(409, "ALREADY_EXISTS", f"{path} exists")
    google.resources[path] = {**request.body, "name": path}
    return 200, google.resources[path]


def _patch_subscription(google: Google, request: Request, path: str) -> tuple[int, Any]:
    changed = request.body["subscription"]
    for name in request.body["updateMask"].split(","):
        google.resources[path][name] = changed.get(name)
    return 200, google.resources[path]


def _listed(google: Google, request: Request, parent: str, kind: str) -> tuple[int, Any]:
    prefix = f"{parent}/{kind}/"
    held = [held for path, held in google.resources.items() if path.startswith(prefix)]
    return 200, {"accounts" if kind == "serviceAccounts" else kind: held}


def _delete(google: Google, request: Request, path: str) -> tuple[int, Any]:
    return (200, {}) if google.resources.pop(path, None) is not None else _absent(path)


def _policy(google: Google, request: Request, path: str) -> tuple[int, Any]:
    return 200, google.policies.get(path, {"etag": "AA=="})


def _set_policy(google: Google, request: Request, path: str) -> tuple[int, Any]:
    google.policies[path] = request.body["policy"]
    return 200, google.policies[path]


def _services(google: Google, request: Request) -> tuple[int, Any]:
    listed = [
        {"config": {"name": name}, "name": name, "state": "ENABLED"} for name in google.enabled
    ]
    return 200, {"services": listed}


def _enable(google: Google, request: Request) -> tuple[int, Any]:
    google.enabled |= set(request.body["serviceIds"])
    return 200, _DONE


def _service(google: Google, request: Request, name: str) -> tuple[int, Any]:
    state = "ENABLED" if name in google.enabled else "DISABLED"
    return 200, {"config": {"name": name}, "state": state}


def _series(google: Google, request: Request) -> tuple[int, Any]:
    point = {"value": {"int64Value": "42"}}
    return 200, {"timeSeries": [{"points": [point]}]}


def _make_account(google: Google, request: Request, project: str) -> tuple[int, Any]:
    email = f"{request.body['accountId']}@{project}.iam.gserviceaccount.com"
    made = {"name": f"projects/{project}/serviceAccounts/{email}", "email": email}
    google.resources[made["name"]] = made
    return 200, made


def _delete_account(google: Google, request: Request, email: str) -> tuple[int, Any]:
    project = email.split("@")[1].split(".", maxsplit=1)[0]
    return _delete(google, request, f"projects/{project}/serviceAccounts/{email}")


def _project(google: Google, request: Request, project: str) -> tuple[int, Any]:
    return 200, {"projectId": project, "projectNumber": NUMBER, "lifecycleState": "ACTIVE"}


def _make_secret(google: Google, request: Request, project: str) -> tuple[int, Any]:
    path = f"projects/{project}/secrets/{request.query['secretId']}"
    google.resources[path] = {**(request.body or {}), "name": path, "versions": []}
    return 200, google.resources[path]


def _add_version(google: Google, request: Request, path: str) -> tuple[int, Any]:
    versions = google.resources[path]["versions"]
    number = len(versions) + 1
    version = {"name": f"{path}/versions/{number}", "state": "ENABLED"}
    version["createTime"] = f"2026-01-01T00:00:{number:02d}Z"
    versions.append({"data": request.body["payload"]["data"], "version": version})
    return 200, version | {"clientSpecifiedPayloadChecksum": True}


def _list_versions(google: Google, request: Request, path: str) -> tuple[int, Any]:
    if path not in google.resources:
        return _absent(path)
    held = [each["version"] for each in google.resources[path]["versions"]]
    return 200, {"versions": held[::-1]}


def _access(google: Google, request: Request, path: str, number: str) -> tuple[int, Any]:
    held = google.resources[path]["versions"][int(number) - 1]
    if held["version"]["state"] != "ENABLED":
        return _error(400, "FAILED_PRECONDITION", f"{number} is {held['version']['state']}")
    return 200, {"name": held["version"]["name"], "payload": {"data": held["data"]}}


def _make_database(google: Google, request: Request, project: str) -> tuple[int, Any]:
    path = f"projects/{project}/databases/{request.query['databaseId']}"
    google.resources[path] = {**request.body, "name": path}
    return 200, {**_DONE, "name": f"{path}/operations/done", "response": google.resources[path]}


def _fields(google: Google, request: Request, database: str) -> tuple[int, Any]:
    kind = request.query["filter"].split(".")[0].split(":")[0]
    held = [
        field
        for path, field in google.resources.items()
        if path.startswith(f"{database}/") and "/fields/" in path and kind in field
    ]
    return 200, {"fields": held}


def _set_field(google: Google, request: Request, path: str) -> tuple[int, Any]:
    held = google.resources.setdefault(path, {"name": path})
    masks = request.query.get("updateMask", "").split(",")
    if any(mask.startswith("indexConfig") for mask in masks):
        held["indexConfig"] = request.body.get("indexConfig", {})
        for index in held["indexConfig"].get("indexes", ()):
            index["state"] = "CREATING"
    if any(mask.startswith("ttlConfig") for mask in masks):
        held["ttlConfig"] = {"state": "CREATING"}
    return 200, {**_DONE, "name": f"{path.partition('/collectionGroups')[0]}/operations/done"}


def _make_index(google: Google, request: Request, group: str) -> tuple[int, Any]:
    path = f"{group}/indexes/{len(google.requests)}"
    last = {"fieldPath": "__name__", "order": "ASCENDING"}
    fields = [*request.body["fields"], last]
    google.resources[path] = {**request.body, "name": path, "fields": fields, "state": "CREATING"}
    kind = "type.googleapis.com/google.firestore.admin.v1.IndexOperationMetadata"
    metadata = {"@type": kind, "index": path, "state": "PROCESSING"}
    return 200, {
        "name": f"{group.partition('/collectionGroups')[0]}/operations/1",
        "metadata": metadata,
    }


def _indexes(google: Google, request: Request, database: str) -> tuple[int, Any]:
    prefix = f"{database}/collectionGroups/"
    held = [
        index
        for path, index in google.resources.items()
        if path.startswith(prefix) and "/indexes/" in path
    ]
    return 200, {"indexes": held}


def _count(google: Google, request: Request) -> tuple[int, Any]:
    return 200, [{"result": {"aggregateFields": {"field_1": {"integerValue": "3"}}}}]


def _make_job(google: Google, request: Request, parent: str) -> tuple[int, Any]:
    path = request.body["name"]
    google.resources[path] = {**request.body, "state": "ENABLED"}
    return 200, google.resources[path]


def _entries(google: Google, request: Request) -> tuple[int, Any]:
    found = [entry for entry in google.entries if matches(request.body["filter"], entry)]
    found.sort(key=lambda entry: str(entry["timestamp"]), reverse=True)
    return 200, {"entries": found[: request.body["pageSize"]]}


def _upload_url(google: Google, request: Request) -> tuple[int, Any]:
    source = {"bucket": "sources", "object": "source.zip"}
    return 200, {"uploadUrl": f"{google.url}/upload", "storageSource": source}


def _runtimes(google: Google, request: Request) -> tuple[int, Any]:
    names = ("python311", "python312", "python313")
    return 200, {"runtimes": [{"name": n, "stage": "GA", "environment": "GEN_2"} for n in names]}


def _function(google: Google, request: Request, path: str) -> tuple[int, Any]:
    held = google.resources.setdefault(path, {"name": path})
    held.update(request.body)
    _, project, _, region, _, name = path.split("/")
    service = f"projects/{project}/locations/{region}/services/{name}"
    uri = f"https://{name}-abc123-ew.a.run.app"
    held["serviceConfig"] = {**held.get("serviceConfig", {}), "service": service, "uri": uri}
    held |= {"state": "ACTIVE", "environment": "GEN_2", "updateTime": "2026-01-01T00:00:00Z"}
    google.resources[service] = {"name": service}
    kind = "type.googleapis.com/google.cloud.functions.v2.Function"
    name = f"projects/{project}/locations/{region}/operations/done"
    return 200, {"name": name, "done": True, "response": {"@type": kind, **held}}


def _make_function(google: Google, request: Request, parent: str) -> tuple[int, Any]:
    return _function(google, request, f"{parent}/functions/{request.query['functionId']}")


def _delete_function(google: Google, request: Request, path: str) -> tuple[int, Any]:
    status, body = _delete(google, request, path)
    return (status, body) if status != 200 else (200, {**_DONE, "name": f"{path}/operations/done"})


def _operation(google: Google, request: Request) -> tuple[int, Any]:
    kind = "type.googleapis.com/google.cloud.functions.v2.OperationMetadata"
    name = request.path.lstrip("/").split("/", 1)[1]
    return 200, {**_DONE, "name": name, "metadata": {"@type": kind, "stages": []}}


def _builder(google: Google, request: Request) -> tuple[int, Any]:
    email = f"{NUMBER}-compute@developer.gserviceaccount.com"
    return 200, {"serviceAccountEmail": f"projects/p/serviceAccounts/{email}"}


def _run_service(google: Google, request: Request, name: str) -> tuple[int, Any]:
    return 200, {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NUMBER},
    }


def _make_metric(google: Google, request: Request, parent: str) -> tuple[int, Any]:
    return _replace(google, request, f"{parent}/metrics/{request.body['name']}")


def _replace(google: Google, request: Request, path: str) -> tuple[int, Any]:
    google.resources[path] = request.body
    return 200, request.body


def _make_numbered(google: Google, request: Request, parent: str, kind: str) -> tuple[int, Any]:
    path = f"{parent}/{kind}/{len(google.requests)}"
    google.resources[path] = {**request.body, "name": path}
    return 200, google.resources[path]


def _patch(google: Google, request: Request, path: str) -> tuple[int, Any]:
    google.resources[path] |= request.body
    return 200, google.resources[path]


_P = "projects/[^/:]+"
_L = f"{_P}/locations/[^/:]+"
_ROUTES: list[tuple[str, _Handler]] = [
    (rf"GET /v1/{_P}/services", _services),
    (rf"GET /v1/{_P}/services/([^/:]+)", _service),
    (rf"POST /v1/{_P}/services:batchEnable", _enable),
    (rf"GET /v3/{_P}/timeSeries", _series),
    (rf"GET /v1/({_P})/(serviceAccounts)", _listed),
    (r"DELETE /v1/projects/-/serviceAccounts/([^/:]+)", _delete_account),
    (r"POST /v1/projects/([^/:]+)/serviceAccounts", _make_account),
    (r"GET /v1/projects/([^/:]+)", _project),
    (r"(?:GET|POST) /v[12]/(.+):getIamPolicy", _policy),
    (r"POST /v[12]/(.+):setIamPolicy", _set_policy),
    (r"POST /v1/projects/([^/:]+)/secrets", _make_secret),
    (rf"POST /v1/({_P}/secrets/[^/:]+):addVersion", _add_version),
    (rf"GET /v1/({_P}/secrets/[^/:]+)/versions", _list_versions),
    (rf"GET /v1/({_P}/secrets/[^/:]+)/versions/(\d+):access", _access),
    (r"POST /v1/projects/([^/:]+)/databases", _make_database),
    (rf"GET /v1/({_P}/databases/[^/:]+)", _get),
    (rf"GET /v1/({_P}/databases/[^/]+)/collectionGroups/-/fields", _fields),
    (rf"GET /v1/({_P}/databases/[^/]+)/collectionGroups/-/indexes", _indexes),
    (rf"POST /v1/({_P}/databases/[^/]+/collectionGroups/[^/]+)/indexes", _make_index),
    (rf"POST /v1/{_P}/databases/[^/]+/documents:runAggregationQuery", _count),
    (rf"PATCH /v1/({_P}/databases/[^/]+/collectionGroups/[^/]+/fields/[^/]+)", _set_field),
    (rf"GET /v1/({_P})/(topics|subscriptions)", _listed),
    (rf"PUT /v1/({_P}/(?:topics|subscriptions)/[^/:]+)", _put),
    (rf"PATCH /v1/({_P}/subscriptions/[^/:]+)", _patch_subscription),
    (rf"DELETE /v1/({_P}/(?:topics|subscriptions)/[^/:]+)", _delete),
    (rf"POST /v2/{_L}/functions:generateUploadUrl", _upload_url),
    (rf"GET /v2/{_L}/runtimes", _runtimes),
    (rf"GET /v2/({_L}/functions/[^/:]+)", _get),
    (rf"POST /v2/({_L})/functions", _make_function),
    (rf"PATCH /v2/({_L}/functions/[^/:]+)", _function),
    (rf"DELETE /v2/({_L}/functions/[^/:]+)", _delete_function),
    (r"GET /(?:v[123]|v1alpha)/.*operations/[^/]+", _operation),
    (r"GET /apis/serving.knative.dev/v1/namespaces/[^/]+/services/([^/]+)", _run_service),
    (rf"GET /v1/{_P}/locations/[^/]+/defaultServiceAccount", _builder),
    (rf"POST /v1/({_L})/jobs", _make_job),
    (rf"GET /v1/({_L}/jobs/[^/:]+)", _get),
    (rf"PATCH /v1/({_L}/jobs/[^/:]+)", _patch),
    (rf"DELETE /v1/({_L}/jobs/[^/:]+)", _delete),
    (r"POST /v2/entries:list", _entries),
    (rf"GET /v2/({_P})/(metrics)", _listed),
    (rf"GET /v2/({_P}/metrics/[^/]+)", _get),
    (rf"POST /v2/({_P})/metrics", _make_metric),
    (rf"PUT /v2/({_P}/metrics/[^/]+)", _replace),
    (rf"DELETE /v2/({_P}/metrics/[^/]+)", _delete),
    (rf"GET /v[13]/({_P})/(alertPolicies|dashboards)", _listed),
    (rf"POST /v[13]/({_P})/(alertPolicies|dashboards)", _make_numbered),
    (rf"GET /v[13]/({_P}/(?:alertPolicies|dashboards)/[^/]+)", _get),
    (rf"PATCH /v3/({_P}/alertPolicies/[^/]+)", _patch),
    (rf"DELETE /v[13]/({_P}/(?:alertPolicies|dashboards)/[^/]+)", _delete),
]  # fmt: skip


@contextmanager
def google() -> Iterator[Google]:
    """Run the server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            raw = self.rfile.read(length)
            parts = urlsplit(self.path)
            if parts.path == "/upload":
                held.uploads.append(raw)
                status, value = 200, dict[str, object]()
            else:
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                path = unquote(parts.path.replace("//", "/"))
                body = json.loads(raw) if raw else None
                status, value = held.answer(Request(self.command, path, query, body))
            answer = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815 - the base's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held = Google(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
