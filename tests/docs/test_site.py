"""The site of the pages: it builds without a warning, asks no other host for anything, and its search finds pages."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.chromium import chromium_or_skip, launched
from tests.waiting import eventually

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

PROJECT = Path(__file__).parents[2]
HOW_TO = sorted((PROJECT / "docs" / "how-to").glob("*.md"))
PAGES = ("index", "tutorial", "how-to/testing", "explanation/life-of-a-job", "reference/worker", "reference/commands")
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*?\ssrc=["']?([^"'\s>]+)"""
    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon|modulepreload))[^>]*?href=["']?([^"'\s>]+)"""
)
_URL = re.compile(r"""(?:url\(|@import\s+)["']?([^"')\s]+)""")
_COMMON = {
    "a",
    "and",
    "are",
    "by",
    "from",
    "how",
    "in",
    "into",
    "it",
    "many",
    "not",
    "of",
    "one",
    "that",
    "the",
    "to",
    "with",
}
"""Words that nobody types into a search box."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site. A warning fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The address of the site, on a server of the test's own."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(site)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"port (\d+)", server.stdout.readline())
            assert found is not None
            yield f"http://127.0.0.1:{found[1]}"
        finally:
            server.terminate()


@asynccontextmanager
async def opened(browser: "Browser", *, width: int = 1280) -> "AsyncIterator[tuple[Page, list[str]]]":
    """A page of a browser, and a list that gets what is wrong with it: errors, and requests to other hosts."""
    context = await browser.new_context(viewport={"width": width, "height": 900})
    page = await context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if "//127.0.0.1:" in request.url else wrong.append(request.url))
    yield page, wrong
    await context.close()


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    """No script, style, picture or font has an address of another host. Links that a reader clicks may."""
    loaded = []
    for page in site.rglob("*.html"):
        loaded += [(page.name, found[0] or found[1]) for found in _LOADED.findall(page.read_text())]
    for style in site.rglob("*.css"):
        loaded += [(style.name, found) for found in _URL.findall(style.read_text())]
    assert len(loaded) > 100
    assert [each for each in loaded if re.match(r"(?:https?:)?//", each[1])] == []


async def test_a_browser_asks_no_other_host_and_reports_no_error(address: str) -> None:
    """At the width of a desk and of a phone. Nothing is wider than a phone, except what scrolls by itself."""
    async with launched(chromium_or_skip()) as browser:
        for width in (1280, 375):
            async with opened(browser, width=width) as (page, wrong):
                for name in PAGES:
                    await page.goto(f"{address}/{name}.html", wait_until="networkidle")
                    assert await page.evaluate("document.documentElement.scrollWidth") <= width, name
                assert wrong == []


async def test_the_search_finds_each_how_to_page(address: str) -> None:
    """The words of a page's title, or of its file's name, show the page among the first three results."""
    missed = []
    async with launched(chromium_or_skip()) as browser, opened(browser) as (page, wrong):
        await page.goto(f"{address}/index.html", wait_until="networkidle")
        await page.keyboard.press("/")
        for file in HOW_TO:
            title = file.read_text().partition("\n")[0].removeprefix("# ")
            tries = [words(title), words(file.stem.replace("-", " "))]
            if not any([await is_found(page, each, file.stem) for each in tries]):
                missed.append((file.stem, tries))
        assert (missed, wrong) == ([], [])


def words(text: str) -> str:
    """The words of a text that a person would type into a search box."""
    return " ".join([word for word in re.findall(r"[a-zA-Z]+", text) if word.lower() not in _COMMON][:4])


async def is_found(page: "Page", query: str, stem: str) -> bool:
    """Whether a search shows a page among the first three results."""
    box = page.locator("[data-md-component=search-query]")
    await box.fill("")
    await box.press_sequentially(query)  # the search listens to keys

    async def shows() -> bool:
        links = await page.locator(".md-search-result__item > a").evaluate_all("links => links.map(link => link.href)")
        return any(f"/{stem}.html" in link for link in links[:3])

    try:
        await eventually(shows, timeout=2)
    except AssertionError:
        return False
    return True
