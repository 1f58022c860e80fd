"""Who may see the dashboard, and who may act.

1. The dashboard has no default: it starts only after a decision, as one of the forms of `Auth`.
2. A viewer sees every page. An operator may also act. The server checks the role for each action.
3. `LoopbackOnly` trusts nothing that a proxy or a foreign page could have sent: see `LoopbackOnly.visitor`.
"""

import hashlib
import hmac
import inspect
import ipaddress
import secrets
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

from starlette.requests import HTTPConnection, Request

from worker.errors import ConfigError

_SHORTEST_SECRET = 12
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
COOKIE = "tandem_dashboard"
"""The cookie that holds a sign-in with a token."""


class Role(StrEnum):
    """What a visitor may do.

    ::

        async def auth(request: Request) -> Role | None:
            user = await user_of(request)
            return Role.OPERATOR if user.is_admin else None
    """

    VIEWER = "viewer"
    OPERATOR = "operator"


class Visitor(NamedTuple):
    """A person or program that may see the dashboard.

    ::

        async def auth(request: Request) -> Visitor | None:
            user = await user_of(request)
            return Visitor(Role.OPERATOR, user.email) if user.is_admin else None
    """

    role: Role
    name: str
    """The name that the audit gives."""

    @property
    def may_act(self) -> bool:
        return self.role is Role.OPERATOR


RoleName: TypeAlias = Literal["viewer", "operator"]
Answer: TypeAlias = Visitor | Role | RoleName | None
AuthCallable: TypeAlias = Callable[[Request], Answer | Awaitable[Answer]]
"""Says who sends a request: a role, a `Visitor` with a name for the audit, or None to refuse. May be a coroutine."""


@dataclass(frozen=True)
class Token:
    """One secret for operators, and perhaps another one for viewers.

    ::

        dashboard(auth=Token(os.environ["OPERATOR_TOKEN"], viewer=os.environ["VIEWER_TOKEN"]))

    Browsers sign in on a page. Programs send ``Authorization: Bearer <token>``.
    """

    operator: str = field(repr=False)
    viewer: str | None = field(default=None, repr=False)
    lasts: int = 7 * 24 * 60 * 60
    """Seconds after which a browser must sign in again."""

    def __post_init__(self) -> None:
        given = [secret for secret in (self.operator, self.viewer) if secret is not None]
        if any(len(secret) < _SHORTEST_SECRET for secret in given):
            example = secrets.token_urlsafe(24)
            raise ConfigError(f"a token needs {_SHORTEST_SECRET} characters or more. Example: {example}")
        if self.operator == self.viewer:
            raise ConfigError("the operator's token and the viewer's are the same: give two tokens, or one")

    def visitor(self, request: Request) -> Visitor | None:
        """The visitor by the request's header or cookie."""
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.of_secret(sent.strip())
        return self._of_cookie(request.cookies.get(COOKIE, ""))

    def of_secret(self, sent: str) -> Visitor | None:
        """The visitor who knows this secret."""
        for role, secret in self._secrets:
            if hmac.compare_digest(sent.encode(), secret.encode()):
                return Visitor(role, f"{role} (token)")
        return None

    def new_cookie(self, role: Role) -> str:
        """The value of a cookie that proves the sign-in. It holds no secret, and is void when the token changes."""
        ends = str(int(time.time()) + self.lasts)
        return f"{role}.{ends}.{self._signature(role, ends)}"

    def _of_cookie(self, cookie: str) -> Visitor | None:
        for role, _ in self._secrets:
            prefix, _, rest = cookie.partition(".")
            ends, _, signature = rest.partition(".")
            if prefix != role or not ends.isascii() or not ends.isdigit():
                continue
            if hmac.compare_digest(signature.encode(), self._signature(role, ends).encode()) and time.time() < int(
                ends
            ):
                return Visitor(role, f"{role} (token)")
        return None

    def _signature(self, role: Role, ends: str) -> str:
        secret = dict(self._secrets)[role]
        return hmac.new(secret.encode(), f"tandem dashboard {role} {ends}".encode(), hashlib.sha256).hexdigest()

    @property
    def _secrets(self) -> list[tuple[Role, str]]:
        viewer = [] if self.viewer is None else [(Role.VIEWER, self.viewer)]
        return [(Role.OPERATOR, self.operator), *viewer]


@dataclass(frozen=True)
class Basic:
    """Names and passwords, as the browser asks for them.

    ::

        dashboard(auth=Basic(operators={"ann": "her password"}, viewers={"bob": "his password"}))

    Args:
        operators: passwords by name.
        viewers: passwords by name of those who may only look.
    """

    operators: Mapping[str, str] = field(repr=False)
    viewers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        passwords = [*self.operators.values(), *self.viewers.values()]
        if not passwords or not all(passwords):
            raise ConfigError(
                "Basic needs at least one name, and no empty password. Example: Basic({'ann': 'a secret'})"
            )
        if both := sorted(self.operators.keys() & self.viewers.keys()):
            raise ConfigError(f"{', '.join(both)}: name a person among operators or viewers, not both")

    def visitor(self, request: Request) -> Visitor | None:
        """The visitor by the request's header."""
        name, password = _name_and_password(request)
        for role, people in ((Role.OPERATOR, self.operators), (Role.VIEWER, self.viewers)):
            # Compared also for unknown names, which then take as long as a wrong password.
            expected = people.get(name, "")
            if hmac.compare_digest(password.encode(), expected.encode()) and expected:
                return Visitor(role, name)
        return None


@dataclass(frozen=True)
class LoopbackOnly:
    """All users of this machine, and no others. For development.

    ::

        dashboard(auth=LoopbackOnly())

    Behind a proxy every request comes from the proxy's address, so a request with a proxy's headers is refused. So is
    one for another host name, as a foreign page may give its own name the address 127.0.0.1.
    """

    role: Role = Role.OPERATOR

    def visitor(self, request: Request) -> Visitor | None:
        """The visitor, if the connection and the requested host are this machine's."""
        is_here = request.client is not None and _is_loopback(request.client.host)
        if not is_here or any(header in request.headers for header in _FORWARDED):
            return None
        host = request.headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return Visitor(self.role, f"{self.role} (this machine)") if name in _LOOPBACK_NAMES else None


Auth: TypeAlias = Token | Basic | LoopbackOnly | AuthCallable
"""The decision: who may see, and who may act."""

_DECIDE = """the dashboard needs a decision about who may see and who may act:
  dashboard(auth=Token("a long secret"))             one secret; Token(operator=..., viewer=...) for two roles
  dashboard(auth=Basic({"ann": "a password"}))       names and passwords
  dashboard(auth=function)                           function(request) -> "viewer", "operator" or None
  dashboard(auth=LoopbackOnly())                     all users of this machine, and no others"""


def decided(auth: object) -> Auth:
    """The decision that was given.

    Raises:
        ConfigError: there is none. The message names the forms.
    """
    if isinstance(auth, Token | Basic | LoopbackOnly):
        return auth
    if isinstance(auth, type) or not callable(auth):
        raise ConfigError(_DECIDE)
    return auth


async def visitor_of(auth: Auth, request: Request) -> Visitor | None:
    """Who sends the request. None: refuse it."""
    if isinstance(auth, Token | Basic | LoopbackOnly):
        return auth.visitor(request)
    answer = auth(request)
    if inspect.isawaitable(answer):
        answer = await answer
    if answer is None or isinstance(answer, Visitor):
        return answer
    role = Role(answer)  # raises for anything else: a wrong answer must not open the door
    return Visitor(role, role)


def is_same_site(request: HTTPConnection) -> bool:
    """Whether a request that acts comes from a page of the dashboard itself, and not from a foreign page.

    Browsers send ``Sec-Fetch-Site``, older ones ``Origin``. A request with neither comes from no browser's page; only a
    program with a bearer token may send it, as browsers attach cookies and passwords by themselves.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2] == request.headers.get("host", "") != ""
    return request.headers.get("authorization", "").lower().startswith("bearer ")


def _name_and_password(request: Request) -> tuple[str, str]:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        name, _, password = b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return name, password


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
