"""Hooks of the site's build: pages that are made, and links to files outside of this folder."""

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from commands import command_page

PROJECT = Path(__file__).parents[2]
OUTSIDE = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "bench/results.md": "project/results.md",
    "bench/results.svg": "project/results.svg",
}
"""Files of the project that are pages of the site, by the site's own path."""
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and those that are elsewhere in the project."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(PROJECT / source)))
    files.append(File.generated(config, "reference/commands.md", content=command_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to files of the project lead to their pages."""
    path = page.file.src_uri
    source = next((source for source, made in OUTSIDE.items() if made == path), f"docs/{path}")

    def moved(link: re.Match[str]) -> str:
        target = link[2]
        if re.match(r"[a-z]+:", target):
            return link[0]
        file = os.path.normpath(PurePosixPath(source).parent / target)
        made = OUTSIDE.get(file, file.removeprefix("docs/") if file.startswith("docs/") else None)
        if made is None:
            return f"`{file}`" if (PROJECT / file).exists() else link[0]
        return f"{link[1]}{os.path.relpath(made, PurePosixPath(path).parent)}{link[3] or ''}{link[4]}"

    return _LINK.sub(moved, markdown)
