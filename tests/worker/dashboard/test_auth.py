"""Seeing and acting need a decision about auth, a role, and a page of the dashboard itself."""

import time
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from tests.worker.dashboard.conftest import AUTH, OPERATOR, VIEWER, as_operator, client_of
from worker.dashboard import Basic, LoopbackOnly, Role, Token, Visitor, dashboard
from worker.errors import ConfigError


def acting_routes() -> list[str]:
    """Every path of the dashboard that takes a POST and is for operators alone."""
    app: Starlette = dashboard(auth=AUTH)
    paths = [route.path for route in app.routes if isinstance(route, Route) and "POST" in (route.methods or ())]
    assert len(paths) >= 9
    return [path.replace("{run}", "x") for path in paths if path not in ("/sign-in", "/sign-out", "/theme")]


class TestDecision:
    @pytest.mark.parametrize("auth", [None, "secret", True, Token, object()])
    def test_without_a_decision_it_does_not_start(self, auth: Any) -> None:
        with pytest.raises(ConfigError, match="decision about who may see") as raised:
            dashboard(auth=auth)
        assert "LoopbackOnly()" in str(raised.value)

    def test_weak_decisions_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="12 characters"):
            Token("short")
        with pytest.raises(ConfigError, match="the same"):
            Token(OPERATOR, OPERATOR)
        with pytest.raises(ConfigError, match="no empty password"):
            Basic({"ann": ""})
        with pytest.raises(ConfigError, match="operators or viewers"):
            Basic({"ann": "a"}, viewers={"ann": "b"})

    def test_secrets_are_not_in_the_repr(self) -> None:
        assert OPERATOR not in repr(AUTH)
        assert "hunter2" not in repr(Basic({"ann": "hunter2"}))


class TestToken:
    async def test_a_browser_signs_in_and_out(self) -> None:
        async with client_of() as client:
            answer = await client.get("/audit?actor=ann", headers={"accept": "text/html"})
            assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?back=audit%3Factor%3Dann")
            wrong = await client.post("/sign-in", data={"token": "not the token", "back": "audit"})
            assert wrong.status_code == 401
            assert "This is not the token." in wrong.text
            right = await client.post("/sign-in", data={"token": OPERATOR, "back": "theme"})
            assert (right.status_code, right.headers["location"]) == (303, "/theme")
            cookie = right.headers["set-cookie"].lower()
            assert "httponly" in cookie
            assert "samesite=strict" in cookie
            assert OPERATOR not in cookie
            assert (await client.post("/theme", data={"theme": "dark"})).status_code == 303
            await client.post("/sign-out")
            assert (await client.get("/audit")).status_code == 401

    async def test_a_cookie_is_void_after_its_time_and_with_another_token(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cookie = AUTH.new_cookie(Role.OPERATOR)

        def of(auth: Token, value: str) -> Visitor | None:
            return auth.visitor(
                Request({"type": "http", "headers": [(b"cookie", f"tandem_dashboard={value}".encode())]})
            )

        assert of(AUTH, cookie) == Visitor(Role.OPERATOR, "operator (token)")
        assert of(Token("another-token-1234"), cookie) is None
        role, ends, signature = cookie.split(".")
        assert of(AUTH, f"viewer.{ends}.{signature}") is None
        assert of(AUTH, f"{role}.{int(ends) + 1}.{signature}") is None
        assert of(AUTH, "") is None
        monkeypatch.setattr(time, "time", lambda: float(ends) + 1)
        assert of(AUTH, cookie) is None

    async def test_a_program_sends_the_token(self) -> None:
        async with client_of(token=VIEWER) as client:
            assert (await client.post("/theme", headers={"sec-fetch-site": ""})).status_code == 403
        async with client_of(token="wrong-token-12345") as client:
            assert (await client.get("/audit")).status_code == 401


class TestOthers:
    async def test_basic(self) -> None:
        auth = Basic({"ann": "a secret"}, viewers={"bob": "another"})
        async with client_of(auth=auth) as client:
            refused = await client.get("/static/dashboard.css")
            assert refused.status_code == 200
            refused = await client.get("/theme")
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic")
            for name, password, status in (
                ("ann", "a secret", 303),
                ("bob", "another", 303),
                ("bob", "x", 401),
                ("", "", 401),
            ):
                answer = await client.post("/theme", auth=(name, password))
                assert (name, answer.status_code) == (name, status)
            assert (await client.post("/queues/act", auth=("bob", "another"))).status_code == 403

    async def test_a_function_decides_synchronously_or_not(self) -> None:
        async def decide(request: Request) -> Visitor | None:
            name = request.headers.get("x-user")
            return None if name is None else Visitor(Role.VIEWER, name)

        async with client_of(auth=decide) as client:
            assert (await client.post("/theme")).status_code == 403
            assert (await client.post("/theme", headers={"x-user": "ann"})).status_code == 303
            assert (await client.post("/queues/act", headers={"x-user": "ann"})).status_code == 403
        async with client_of(auth=lambda _: "operator") as client:
            assert (await client.post("/queues/act")).status_code == 400

    async def test_a_wrong_answer_of_the_function_opens_nothing(self) -> None:
        async with client_of(auth=lambda _: "admin") as client:
            with pytest.raises(ValueError, match="admin"):
                await client.get("/audit")

    @pytest.mark.parametrize(
        ("host", "base", "headers"),
        [
            ("10.0.0.7", "http://localhost", {}),
            ("127.0.0.1", "http://evil.example", {}),
            ("127.0.0.1", "http://localhost.evil.example:80", {}),
            ("127.0.0.1", "http://localhost", {"x-forwarded-for": "1.2.3.4"}),
            ("127.0.0.1", "http://localhost", {"forwarded": "for=1.2.3.4"}),
        ],
    )
    async def test_loopback_only_refuses_everyone_else(self, host: str, base: str, headers: dict[str, str]) -> None:
        async with client_of(auth=LoopbackOnly(), host=host, base=base) as client:
            assert (await client.post("/theme", headers=headers)).status_code == 403

    @pytest.mark.parametrize("base", ["http://localhost:9181", "http://127.0.0.1", "http://[::1]:80"])
    async def test_loopback_only_takes_this_machine(self, base: str) -> None:
        async with client_of(auth=LoopbackOnly(), base=base) as client:
            assert (await client.post("/theme")).status_code == 303


class TestActing:
    @pytest.mark.parametrize("path", acting_routes())
    async def test_a_viewer_may_not_act(self, path: str) -> None:
        async with client_of(token=VIEWER) as client:
            answer = await client.post(path, data={"action": "retry", "id": "x", "queue": "mail"})
            assert (answer.status_code, answer.text) == (403, "You may look, and not act: an operator may.\n")

    @pytest.mark.parametrize("path", [*acting_routes(), "/sign-in", "/sign-out", "/theme"])
    async def test_another_site_may_not_act(self, path: str) -> None:
        cookie = {"tandem_dashboard": AUTH.new_cookie(Role.OPERATOR)}
        for headers in (
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"sec-fetch-site": "none"},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {},
        ):
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(dashboard(auth=AUTH)), base_url="http://test", cookies=cookie
            ) as client:
                answer = await client.post(path, headers=headers, data={"action": "purge", "queue": "mail"})
                assert (headers, answer.status_code) == (headers, 403)

    async def test_the_own_origin_may_act_without_fetch_metadata(self) -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(dashboard(auth=AUTH)), base_url="http://test:8000"
        ) as client:
            answer = await client.post("/sign-in", headers={"origin": "http://test:8000"}, data={"token": OPERATOR})
            assert answer.status_code == 303

    async def test_a_form_leads_to_no_other_host(self) -> None:
        async with as_operator() as client:
            for back in ("//evil.example", "/\\evil.example", "https://evil.example", "\t//evil.example", " /evil"):
                answer = await client.post("/theme", data={"theme": "dark", "back": back})
                location = answer.headers["location"]
                assert location.startswith("/")
                assert not location.startswith(("//", "/\\"))

    async def test_a_large_form_is_refused(self) -> None:
        async with as_operator() as client:
            answer = await client.post("/theme", content=b"a=" + b"x" * 300_000)
            assert answer.status_code == 413


class TestHeaders:
    @pytest.mark.parametrize(
        "path", ["/sign-in", "/static/dashboard.css", "/static/dashboard.js", "/audit", "/nothing"]
    )
    async def test_every_response_forbids_what_pages_do_not_need(self, path: str) -> None:
        async with client_of() as client:
            headers = (await client.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] in ("no-store", "no-cache")
