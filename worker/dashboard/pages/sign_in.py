"""Signing in with a token, signing out, and the theme."""

from starlette.requests import Request
from starlette.responses import Response

from worker.dashboard.auth import COOKIE, Token
from worker.dashboard.site import Site, form_of, one


class SignIn:
    """The page on which a browser signs in with a token, and what changes the visitor's own browser only."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def show(self, request: Request) -> Response:
        """Ask for the token."""
        if not isinstance(self._site.auth, Token) or request.state.visitor is not None:
            return self._site.back(request, "")
        return self._page(request, request.query_params.get("back", ""))

    async def enter(self, request: Request) -> Response:
        """Sign in, if the token is right."""
        form, auth = await form_of(request), self._site.auth
        visitor = auth.of_secret(one(form, "token").strip()) if isinstance(auth, Token) else None
        if visitor is None or not isinstance(auth, Token):
            return self._page(request, one(form, "back"), is_wrong=True)
        response = self._site.back(request, one(form, "back"))
        response.set_cookie(
            COOKIE,
            auth.new_cookie(visitor.role),
            max_age=auth.lasts,
            path=request.scope.get("root_path", "") or "/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def leave(self, request: Request) -> Response:
        """Sign out."""
        response = self._site.back(request, "sign-in")
        response.delete_cookie(COOKIE, path=request.scope.get("root_path", "") or "/")
        return response

    async def theme(self, request: Request) -> Response:
        """Choose the theme of this browser."""
        form = await form_of(request)
        return self._site.with_theme(request, one(form, "theme"), one(form, "back"))

    def _page(self, request: Request, back: str, *, is_wrong: bool = False) -> Response:
        status = 401 if is_wrong else 200
        return self._site.page(request, "sign_in.html", status=status, back=back, is_wrong=is_wrong, section="sign-in")
