"""The wheel that users install, and an environment that has it instead of the checkout."""

import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installed:
    """A virtual environment that holds the wheel; what the wheel needs comes from the environment of the tests."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def run(self, *command: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
        """Run one of its programs in a folder."""
        program = [str(self.folder / "bin" / command[0]), *command[1:]]
        return subprocess.run(
            program, check=False, cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=120
        )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout, built by the build system that pyproject.toml names, without asking the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; hatchling.build.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=PROJECT, check=True, capture_output=True, timeout=120
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, installed."""
    environment = Installed(tmp_path_factory.mktemp("environment"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment.folder], check=True, timeout=120)
    pip = [sys.executable, "-m", "pip", "--python", str(environment.python), "install", "--quiet"]
    alone = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *alone, str(wheel)], check=True, capture_output=True, timeout=120)
    # Not the whole environment of the tests as a site of its own: that one leads to the checkout.
    (environment.packages / "needs.pth").write_text(sysconfig.get_path("purelib"))
    return environment


@pytest.fixture(scope="session")
def names(wheel: Path) -> list[str]:
    """What is in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()
