"""The diagram of docs/explanation/life-of-a-job.md can be read on telephones and desks, in light and dark."""

import re
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest

from tests.chromium import chromium_or_skip, launched

DIAGRAM = Path(__file__).parents[2] / "docs" / "pictures" / "life-of-a-job.svg"
_SMALLEST = 11.0  # pixels of letters on a telephone
_CONTRAST = 4.5  # of text, as WCAG AA asks
_MEASURE = """() => [...document.querySelectorAll('text')].map(text => {
    const box = text.getBBox();
    return [text.textContent, box.x, box.y, box.x + box.width, box.y + box.height];
})"""
_COLOURS = """() => [...document.querySelectorAll('text, .page')].map(
    each => [each.classList[0], getComputedStyle(each).fill])"""


def test_the_diagram_asks_no_other_host_and_runs_no_script() -> None:
    """It is drawn with shapes and text alone."""
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(DIAGRAM).iter()}
    assert tags <= {"svg", "title", "desc", "style", "defs", "marker", "path", "rect", "circle", "text"}
    addresses = set(re.findall(r"https?://[^\"' )]+", DIAGRAM.read_text()))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_letters_are_large_enough_on_a_telephone() -> None:
    """375 pixels wide, with the margins of a page."""
    text = DIAGRAM.read_text()
    width = int(re.findall(r'viewBox="0 0 (\d+)', text)[0])
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:700 )?(\d+)px", text)]
    assert min(size for size in sizes if size > 15) * (375 - 2 * 16) / width > _SMALLEST


async def test_all_text_lies_inside_the_diagram_and_apart() -> None:
    """Also with the wide letters of a machine that has few fonts."""
    async with launched(chromium_or_skip()) as browser:
        page = await browser.new_page()
        await page.goto(DIAGRAM.as_uri())
        texts = await page.evaluate(_MEASURE)
    width, height = map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', DIAGRAM.read_text())[0])
    assert len(texts) > 15
    assert [
        text
        for text, left, top, right, bottom in texts
        if min(left, top) < 8 or right > width - 8 or bottom > height - 8
    ] == []
    touching = [
        (one[0], other[0])
        for number, one in enumerate(texts)
        for other in texts[:number]
        if one[1] < other[3] and other[1] < one[3] and one[2] + 3 < other[4] and other[2] + 3 < one[4]
    ]
    assert touching == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_stands_out_from_its_ground(scheme: Literal["light", "dark"]) -> None:
    """In both colour schemes."""
    async with launched(chromium_or_skip()) as browser:
        page = await browser.new_page(color_scheme=scheme)
        await page.goto(DIAGRAM.as_uri())
        colours: list[tuple[str, str]] = await page.evaluate(_COLOURS)
    ground = next(fill for kind, fill in colours if kind == "page")
    assert (luminance(ground) > 0.5) == (scheme == "light")
    assert {
        kind: fill for kind, fill in colours if kind not in ("page", "d") and contrast(fill, ground) < _CONTRAST
    } == {}


def luminance(colour: str) -> float:
    """The relative luminance of ``rgb(1, 2, 3)``, from 0 to 1."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
