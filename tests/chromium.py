"""A real Chromium for tests and pictures: the Debian package `chromium`, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.async_api import Browser

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
REQUIRED = "TANDEM_REQUIRE_CHROMIUM"
"""An environment variable: if it is set, tests that find no Chromium fail instead of being skipped."""


def chromium() -> str | None:
    """The path of the program, or None."""
    return next((path for name in _PROGRAMS if (path := shutil.which(name))), None)


def chromium_or_skip() -> str:
    """The path of the program. Without it the test is skipped, or fails where it is required."""
    path = chromium()
    if path is None:
        reason = "no Chromium on this machine: apt-get install chromium"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@asynccontextmanager
async def launched(path: str) -> "AsyncIterator[Browser]":
    """A browser without a window."""
    from playwright.async_api import async_playwright

    # Chromium's sandbox does not work for root, nor in most containers. The pages are our own.
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()
