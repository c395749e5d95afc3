"""The HTTP API, version 1: one line a route, a handler each, and the way from a request to its answer.

A route states who may use it and whether it exists before a root is pinned. Everything that goes
wrong becomes an `ErrorBody` here and nowhere else.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedctl_agent.daemon.agent import Agent
from fedctl_agent.daemon.errors import ApiError
from fedctl_agent.daemon.exchange import FileReply, JsonReply, Reply, Request, Role, StreamReply
from fedctl_agent.daemon.logs import PRIORITIES
from fedctl_agent.daemon.slots import manifest_of
from fedctl_agent.state import NO_ROOM
from fedctl_agent.tokens import TokenError
from fedctl_wire.codec import dump_bytes
from fedctl_wire.errors import WireError
from fedctl_wire.messages import EnrolmentRequest
from fedctl_wire.names import Name, check_sha256

_NAME_CHARS = 100  # of a file, in an answer
_WAIT_S = 60.0  # of a long poll, at most
_EVERY_S = 3600.0
_SEEN = 2.0**53
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})?")

Handler = Callable[[Agent, Request], Reply]


@dataclass(frozen=True, slots=True)
class Route:
    """A method and path; `{name}`, `{version}`, `{sha256}` and `{task_id}` are checked before the handler."""

    method: str
    path: str
    handler: Handler
    roles: frozenset[Role] = frozenset({Role.OPERATOR})
    unenrolled: bool = False  # whether it answers before a root is pinned


class Router:
    """Finds a request's route, checks the caller, and turns whatever happens into an answer."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._routes = [(re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", r.path)), r) for r in ROUTES]

    def __call__(self, request: Request) -> Reply:
        """Answer a request.

        Raises:
            ConnectionError: When the caller went away in the middle of the body.
        """
        try:
            return self._answer(request)
        except ApiError as error:
            failure = error
        except WireError as error:
            failure = ApiError.of(error)
        except ConnectionError:
            raise
        except OSError as error:
            failure = self._of_the_system(request, error)
        except Exception:  # noqa: BLE001 - the boundary: a fault must not take the connection's caller down
            failure = self._fault(request)
        return JsonReply(failure.body, failure.status, failure.headers)

    def _answer(self, request: Request) -> Reply:
        for path, route in self._routes:
            if route.method == request.method and (match := path.fullmatch(request.path)):
                self._check_caller(route, request)
                parameters = {key: _PARAMETERS[key](text) for key, text in match.groupdict().items()}
                return route.handler(self._agent, replace(request, parameters=parameters))
        allowed = ", ".join(sorted(r.method for path, r in self._routes if path.fullmatch(request.path)))
        if not allowed:
            raise ApiError(404, "no_route", f"there is no {request.path[:200]}", subject=request.path[:200])
        message = f"{request.path} takes {allowed}, not {request.method[:20]}"
        raise ApiError(405, "method", message, headers={"Allow": allowed})

    def _check_caller(self, route: Route, request: Request) -> None:
        role = request.role()
        if role not in route.roles:
            raise ApiError(403, "role", f"a {role.value} may not use {route.method} {route.path}")
        if not route.unenrolled and not self._agent.trust.enrolled:
            raise ApiError(
                403, "not_enrolled", "this device is not enrolled", hint="enrol it: fedctl devices add"
            )

    def _of_the_system(self, request: Request, error: OSError) -> ApiError:
        if error.errno in NO_ROOM:
            self._agent.log.write("error", "the disk is full", path=request.path)
            return ApiError(
                507, "disk_full", "the device's disk is full", hint="make room on it and try again"
            )
        where = f" ({Path(str(error.filename)).name[:_NAME_CHARS]})" if error.filename else ""
        return self._fault(request, f": {error.strerror or type(error).__name__}{where}")

    def _fault(self, request: Request, cause: str = "") -> ApiError:
        self._agent.log.write("error", "internal fault", path=request.path, trace=traceback.format_exc())
        return ApiError(500, "internal", f"the agent failed{cause}", hint="see its log: GET /v1/logs")


# ------------------------------------------------------------------ identity and trust


def _health(agent: Agent, _request: Request) -> Reply:
    return JsonReply(agent.health())


def _identity(agent: Agent, _request: Request) -> Reply:
    return JsonReply(agent.trust.identity)


def _enrol(agent: Agent, request: Request) -> Reply:
    if request.role() is Role.STRANGER:
        return _enrol_by_token(agent, request)
    return JsonReply(agent.trust.enrol(request.decode(EnrolmentRequest)))


def _enrol_by_token(agent: Agent, request: Request) -> Reply:
    try:
        agent.tokens.check(request.headers.get("authorization"))
    except TokenError as error:
        hint, challenge = "at the device: fedctl-agent enrol", {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, "token", str(error), hint=hint, headers=challenge) from error
    wanted = request.decode(EnrolmentRequest)
    if not wanted.certificate:  # nobody could call again
        raise ApiError(403, "certificate", "an enrolment over HTTPS has to bring the device's certificate")
    identity = agent.trust.enrol(wanted, before_pinning=agent.tokens.use_up)
    return JsonReply(identity, headers={"Connection": "close"})  # from now on a certificate is asked for


def _put_roster(agent: Agent, request: Request) -> Reply:
    return JsonReply({"serial": agent.trust.replace_roster(request.envelope(what="roster"))})


def _put_policy(agent: Agent, request: Request) -> Reply:
    return JsonReply({"serial": agent.trust.replace_policy(request.envelope(what="policy"))})


# ------------------------------------------------------------------ looking


def _status(agent: Agent, _request: Request) -> Reply:
    return JsonReply(agent.status())


def _telemetry(agent: Agent, request: Request) -> Reply:
    agent.policy.effective().require_share("telemetry")
    every = max(0.1, request.number("every", 1.0, most=_EVERY_S))

    def lines() -> Iterator[bytes]:
        yield dump_bytes(agent.telemetry.read()) + b"\n"
        while not request.gone(every):
            yield dump_bytes(agent.telemetry.read()) + b"\n"

    return StreamReply(lines())


def _logs(agent: Agent, request: Request) -> Reply:
    agent.policy.effective().require_share("logs")
    priority = request.query.get("priority", PRIORITIES[-1])
    if priority not in PRIORITIES:
        known = ", ".join(PRIORITIES)
        raise ApiError(400, "malformed", f"priority is not one of {known}", subject="priority")
    follow = request.gone if request.flag("follow") else None
    return StreamReply(agent.log.lines(since=request.query.get("since", ""), priority=priority, gone=follow))


def _data(agent: Agent, _request: Request) -> Reply:
    return JsonReply(agent.data.report(agent.policy.effective()))


# ------------------------------------------------------------------ blobs and models


def _head_blob(agent: Agent, request: Request) -> Reply:
    offset, finished = agent.blobs.offset(request.parameters["sha256"])
    headers = {"Upload-Offset": str(offset)}
    return JsonReply(None, headers={**headers, "Upload-Length": str(offset)} if finished else headers)


def _patch_blob(agent: Agent, request: Request) -> Reply:
    sha256 = request.parameters["sha256"]
    offset = _whole(request.headers.get("upload-offset"), "Upload-Offset")
    total = _whole(request.query.get("bytes"), "bytes")
    here = agent.blobs.append(sha256, offset=offset, total=total, blocks=request.body.blocks())
    return JsonReply({"sha256": sha256, "offset": here}, headers={"Upload-Offset": str(here)})


def _put_model(agent: Agent, request: Request) -> Reply:
    name, version = _model(request)
    envelope = request.envelope(what="bundle")
    agent.worker.verify("bundle", envelope.to_json())
    manifest = manifest_of(envelope)
    if (manifest.model, manifest.model_version) != (name, version):
        raise ApiError(
            400,
            "malformed",
            f"the bundle is {manifest.model}@{manifest.model_version}, not {name}@{version}",
            subject=name,
        )
    installed = agent.slots.install(envelope, activate=request.flag("activate"))
    if not installed.missing:
        agent.log.write("info", "model installed", model=name, version=version, slot=installed.slot)
    return JsonReply(installed, 409 if installed.missing else 200)


def _activate_model(agent: Agent, request: Request) -> Reply:
    return JsonReply(agent.slots.activate(*_model(request)))


def _delete_model(agent: Agent, request: Request) -> Reply:
    agent.slots.delete(*_model(request))
    return JsonReply({})


# ------------------------------------------------------------------ tasks


def _put_task(agent: Agent, request: Request) -> Reply:
    status, created = agent.tasks.put(request.parameters["task_id"], request.read())
    return JsonReply(status, 201 if created else 200)


def _get_task(agent: Agent, request: Request) -> Reply:
    seen = int(request.number("seen", 0, most=_SEEN))
    wait_s = request.number("wait", 0, most=_WAIT_S)
    task_id = request.parameters["task_id"]
    return JsonReply(agent.tasks.wait(task_id, seen=seen, wait_s=wait_s, gone=request.gone))


def _cancel_task(agent: Agent, request: Request) -> Reply:
    return JsonReply(agent.tasks.cancel(request.parameters["task_id"]))


def _ack_task(agent: Agent, request: Request) -> Reply:
    return JsonReply(agent.tasks.ack(request.parameters["task_id"]))


def _get_result(agent: Agent, request: Request) -> Reply:
    path, sha256 = agent.tasks.result_file(request.parameters["task_id"])
    size = path.stat().st_size
    headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
    wanted = request.headers.get("range")
    if wanted is None:
        return FileReply(path, 0, size, headers=headers)
    match = _RANGE.fullmatch(wanted)
    first, last = (int(match[1]), int(match[2] or size)) if match else (size, 0)
    last = min(last, size - 1)
    if first > last:
        raise ApiError(
            416,
            "range",
            f"the result has {size} bytes; {wanted[:60]!r} is no range of it",
            headers={**headers, "Content-Range": f"bytes */{size}"},
        )
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return FileReply(path, first, last + 1 - first, 206, headers)


# ------------------------------------------------------------------ parameters


def _check_version(text: str) -> str:
    if not _VERSION.fullmatch(text):
        raise ApiError(400, "malformed", f"version {text[:40]!r} is not a positive number", subject="version")
    return text


def _whole(text: str | None, what: str) -> int:
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 15:
        raise ApiError(400, "malformed", f"{what} is missing or not a whole number", subject=what)
    return int(text)


def _model(request: Request) -> tuple[str, int]:
    return request.parameters["name"], int(request.parameters["version"])


_PARAMETERS: Mapping[str, Callable[[str], str]] = {
    "name": lambda text: Name(text, what="model"),
    "version": _check_version,
    "sha256": check_sha256,
    "task_id": lambda text: check_sha256(text, what="task id"),
}

_ANYONE = frozenset(Role)
_NEWCOMERS = frozenset({Role.OPERATOR, Role.STRANGER})

ROUTES: tuple[Route, ...] = (
    Route("GET", "/v1/health", _health, _ANYONE, unenrolled=True),
    Route("GET", "/v1/identity", _identity, _NEWCOMERS, unenrolled=True),
    Route("PUT", "/v1/enrolment", _enrol, _NEWCOMERS, unenrolled=True),
    Route("PUT", "/v1/roster", _put_roster),
    Route("PUT", "/v1/policy", _put_policy),
    Route("GET", "/v1/status", _status),
    Route("GET", "/v1/telemetry", _telemetry),
    Route("GET", "/v1/logs", _logs),
    Route("GET", "/v1/data", _data),
    Route("HEAD", "/v1/blobs/{sha256}", _head_blob),
    Route("PATCH", "/v1/blobs/{sha256}", _patch_blob),
    Route("PUT", "/v1/models/{name}/{version}", _put_model),
    Route("DELETE", "/v1/models/{name}/{version}", _delete_model),
    Route("POST", "/v1/models/{name}/{version}/activate", _activate_model),
    Route("PUT", "/v1/tasks/{task_id}", _put_task),
    Route("GET", "/v1/tasks/{task_id}", _get_task),
    Route("DELETE", "/v1/tasks/{task_id}", _cancel_task),
    Route("GET", "/v1/tasks/{task_id}/result", _get_result),
    Route("POST", "/v1/tasks/{task_id}/ack", _ack_task),
)
