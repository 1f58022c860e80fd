import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import worker
from worker.errors import RegistryError
from worker.registry import Registry, load

SEND = """
from worker import task

@task
async def send(order: int) -> None: ...
"""

# Loads the registry as a process does: all problems on stderr, one a line, and an exit code.
LOAD = """
import sys
from worker.errors import RegistryError
from worker.registry import load
try:
    print(*load().tasks)
except RegistryError as error:
    sys.exit(str(error))
"""


def write(folder: Path, files: dict[str, str]) -> None:
    """Write a project's files, by their path in `folder`."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    importlib.invalidate_caches()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, in an interpreter that has no other `tasks` and forgets those it gets here."""
    others = take_modules("tasks")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "tasks").exists()])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    take_modules("tasks", "webapp", "joblist")
    sys.modules.update(others)


def take_modules(*tops: str) -> dict[str, ModuleType]:
    """Remove these packages and modules from the interpreter."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in tops}


@pytest.fixture(scope="session")
def tandem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Tandem's packages and nothing else, as an installation has them."""
    site = tmp_path_factory.mktemp("site")
    for package in ("db", "worker"):
        (site / package).symlink_to(Path(inspect.getfile(worker)).parent.parent / package)
    return site


def python(*arguments: str, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter in `cwd` with `path` on `sys.path`."""
    urls = {"DATABASE_URL": "postgresql://nowhere.invalid/app", "REDIS_URL": "redis://nowhere.invalid"}
    environment = {**os.environ, **urls, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def problems(path: str = "tasks.registry") -> tuple[str, ...]:
    with pytest.raises(RegistryError) as caught:
        load(path)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def problem(path: str = "tasks.registry") -> str:
    (line,) = problems(path)
    return line


class TestLoad:
    def test_listed_tasks_are_loaded_by_name_in_the_order_of_the_list(self, root: Path) -> None:
        """Every listed task is there by its name on the wire, in the order of the list."""
        write(
            root,
            {
                "tasks/__init__.py": "",
                "tasks/mail.py": SEND,
                "tasks/reports.py": "from worker import task\n@task(name='weekly')\ndef report() -> None: ...\n",
                "tasks/registry.py": 'TASKS = ("tasks.reports.report", "tasks.mail.send")',
            },
        )
        registry = load()
        assert list(registry.tasks) == ["weekly", "send"]
        assert registry.tasks["send"].module == "tasks.mail"
        assert registry.file == str(root / "tasks/registry.py")
        assert registry.lifespan is None

    def test_a_loaded_registry_cannot_be_changed(self, root: Path) -> None:
        """The tasks of a registry are read-only."""
        write(root, {"tasks/mail.py": SEND, "tasks/registry.py": 'TASKS = ("tasks.mail.send",)'})
        registry = load()
        with pytest.raises(TypeError):
            registry.tasks["other"] = registry.tasks["send"]  # type: ignore[index]  # the case under test

    def test_a_folder_of_tasks_needs_no_init_file(self, root: Path) -> None:
        """A folder of tasks needs no __init__.py."""
        write(root, {"tasks/mail.py": SEND, "tasks/registry.py": 'TASKS = ("tasks.mail.send",)'})
        assert list(load().tasks) == ["send"]

    def test_any_module_can_be_the_registry(self, root: Path) -> None:
        """The registry may be any module, a single file too."""
        write(root, {"joblist.py": SEND + 'TASKS = ("joblist.send",)'})
        assert list(load("joblist").tasks) == ["send"]

    def test_objects_of_arqs_func_and_cron_are_accepted(self, root: Path) -> None:
        """arq's func() and cron() objects are accepted, in the list itself and by their path."""
        write(
            root,
            {
                "tasks/old.py": "from arq import cron\nasync def f(ctx): ...\nnightly = cron(f, hour=2, minute=0)\n",
                "tasks/registry.py": (
                    "from arq import func\nfrom tasks.old import f\nTASKS = (func(f), 'tasks.old.nightly')\n"
                ),
            },
        )
        tasks = load().tasks
        assert list(tasks) == ["f", "cron:f"]
        assert tasks["f"].schedule is None
        assert tasks["cron:f"].schedule is not None

    def test_lifespan_names_the_context_manager_of_the_resources(self, root: Path) -> None:
        """LIFESPAN names the async context manager of the worker's resources."""
        write(
            root,
            {
                "tasks/mail.py": SEND,
                "tasks/resources.py": (
                    "from contextlib import asynccontextmanager\n"
                    "@asynccontextmanager\nasync def lifespan():\n    yield {'http': 1}\n"
                ),
                "tasks/registry.py": 'TASKS = ("tasks.mail.send",)\nLIFESPAN = "tasks.resources.lifespan"',
            },
        )
        lifespan = load().lifespan
        assert lifespan is not None
        assert lifespan.__qualname__ == "lifespan"


class TestRegistryModule:
    @pytest.mark.usefixtures("root")
    def test_a_missing_registry_shows_where_python_looked_and_the_setting(self) -> None:
        """The error shows where Python looked, and the setting that names another registry."""
        line = problem()
        assert line.startswith("there is no module tasks. Python looked in ")
        assert str(Path(pytest.__file__).parent.parent) in line
        assert line.endswith("Start in the folder that holds tasks, or set WORKER_REGISTRY.")

    def test_a_registry_that_is_missing_in_its_package_shows_that_package_alone(self, root: Path) -> None:
        """If the package exists and the registry does not, only the package was searched."""
        write(root, {"tasks/__init__.py": "", "tasks/regstry.py": ""})
        line = problem()
        assert f"there is no module tasks.registry. Python looked in {root / 'tasks'}." in line
        assert "Did you mean tasks.regstry?" in line

    def test_a_module_in_the_place_of_a_package_is_named_with_its_file(self, root: Path) -> None:
        """A module where a package must be is named with its file."""
        sys.path.insert(0, str(root))
        write(root, {"tasks.py": ""})
        assert f"tasks is {root / 'tasks.py'}, which is a module, not a package" in problem()

    @pytest.mark.usefixtures("root")
    @pytest.mark.parametrize("path", ["", ".registry", "tasks/registry.py", "tasks.registry:TASKS"])
    def test_a_registry_that_is_no_dotted_path_is_refused_before_any_import(self, path: str) -> None:
        """A text that is no dotted path is refused before anything is imported."""
        assert problem(path) == (
            f"{path!r} is not the dotted path of a module. Example: WORKER_REGISTRY=tasks.registry"
        )

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "tasks/registry.py has no TASKS"),
            ("TASKS = ()", "is empty"),
            ('TASKS = ("tasks.mail.send")', "a tuple of one needs a comma"),
            ('TASKS = ["tasks.mail.send"]', "is a list: make it a tuple"),
            ('TASKS = (("tasks.mail.send",),)', "list one dotted path a line"),
            ("TASKS = (None,)", "TASKS holds None"),
            ("from tasks.mail import send\nTASKS = (send,)", "TASKS holds the task send itself"),
            ("1/0", "tasks/registry.py:1: ZeroDivisionError: division by zero"),
        ],
    )
    def test_a_list_that_is_no_flat_tuple_of_paths_is_refused_with_the_reason(
        self, root: Path, text: str, complaint: str
    ) -> None:
        """A list of another shape than a flat tuple of paths is refused, with the reason."""
        write(root, {"tasks/mail.py": SEND, "tasks/registry.py": text})
        assert complaint in problem()

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("LIFESPAN = 7", "LIFESPAN is 7"),
            ('LIFESPAN = "tasks.mail.nothing"', "tasks/mail.py has no 'nothing'"),
            ('LIFESPAN = "tasks.mail.generator"', "decorate it with @contextlib.asynccontextmanager"),
            ('LIFESPAN = "tasks.mail.coroutine"', "must be an async context manager"),
            ('LIFESPAN = "tasks.mail.needs_more"', "called without arguments"),
        ],
    )
    def test_a_lifespan_that_could_not_be_entered_is_refused(self, root: Path, text: str, complaint: str) -> None:
        """A LIFESPAN that could not be entered is found before the worker starts."""
        functions = (
            "async def generator():\n    yield {}\n"
            "async def coroutine(): ...\n"
            "from contextlib import asynccontextmanager\n"
            "@asynccontextmanager\nasync def needs_more(app):\n    yield {}\n"
        )
        write(
            root,
            {"tasks/mail.py": SEND + functions, "tasks/registry.py": f'TASKS = ("tasks.mail.send",)\n{text}'},
        )
        assert complaint in problem()


class TestEntries:
    @pytest.mark.parametrize(
        ("entry", "complaint"),
        [
            (".mail.send", "'.mail.send', which is not the absolute path of a task"),
            ("send", "'send', which is not the absolute path of a task"),
            ("tasks/mail.py", "'tasks/mail.py', which is not the absolute path of a task"),
            (
                "tasks.mial.send",
                "there is no module tasks.mial. Python looked in {root}/tasks. Did you mean tasks.mail?",
            ),
            ("tasks.mail.sned", "tasks/mail.py has no 'sned'. Did you mean send?"),
            ("tasks.mail.send.now", "tasks.mail is {root}/tasks/mail.py, which is a module, not a package"),
            ("tasks.mail", "tasks.mail is a module: add the name of a function in it"),
            ("tasks.mail.plain", "tasks.mail.plain is a plain function: decorate it with @task"),
            ("tasks.mail.LIMIT", "tasks.mail.LIMIT is not a task but an object of type int"),
            (
                "tasks.mail.sendtasks.mail.send",
                "Is there a comma missing in TASKS at 'tasks.mail.sendtasks.mail.send'?",
            ),
            ("tasks.needs.f", "tasks/needs.py:2: there is no module tasks.nedes. Python looked in {root}/tasks."),
            ("tasks.raises.f", "tasks/raises.py:4: ValueError: no such thing"),
            ("tasks.lazy.f", "tasks/lazy.py:2: LookupError: f is away"),
            ("tasks.misnames.f", "tasks/misnames.py:1: there is no module a.b.c. Python looked in "),
            ("tasks.exits.f", "tasks/exits.py:2: SystemExit: 3"),
            ("tasks.syntax.f", "tasks/syntax.py:2: SyntaxError: "),
            ("tasks.library.f", "tasks/library.py:2: JSONDecodeError: "),
            ("tasks.from_.f", "tasks/from_.py:1: ImportError: cannot import name 'sned' from 'tasks.mail'"),
            ("tasks.signature.f", "tasks.signature.f cannot be a task: *rest cannot be validated"),
        ],
    )
    def test_a_wrong_entry_is_reported_in_one_line_with_its_place(self, root: Path, entry: str, complaint: str) -> None:
        """A problem of an entry is one line, with its place in the project."""
        write(
            root,
            {
                "tasks/__init__.py": "",
                "tasks/mail.py": f"{SEND}\nasync def plain() -> None: ...\nLIMIT = 7\n",
                "tasks/needs.py": "\nimport tasks.nedes\n",
                "tasks/raises.py": "\ndef fail():\n    # two lines\n    raise ValueError('no such\\n thing')\nfail()\n",
                "tasks/lazy.py": "def __getattr__(name):\n    raise LookupError(f'{name} is away')\n",
                "tasks/misnames.py": "raise ModuleNotFoundError('away', name='a.b.c')\n",
                "tasks/exits.py": "import sys\nsys.exit(3)\n",
                "tasks/syntax.py": "\ndef f(:\n",
                "tasks/library.py": "import json\njson.loads('{')\n",
                "tasks/from_.py": "from tasks.mail import sned\n",
                "tasks/signature.py": "from worker import task\n@task\nasync def f(*rest): ...\n",
                "tasks/registry.py": f"TASKS = ({entry!r},)",
            },
        )
        assert complaint.format(root=root) in problem()

    def test_a_module_that_cannot_be_read_is_reported_by_its_name(self, root: Path) -> None:
        """A module that is no text is reported by its name."""
        write(root, {"tasks/registry.py": 'TASKS = ("tasks.binary.f",)'})
        (root / "tasks/binary.py").write_bytes(b"\xff\x00")
        assert problem().partition(":")[0] in ("tasks.binary", "tasks/binary.py")

    def test_all_problems_are_reported_together_and_each_of_them_once(self, root: Path) -> None:
        """All problems are reported together, and a problem that several entries share is reported once."""
        write(
            root,
            {
                "tasks/mail.py": SEND,
                "tasks/broken.py": "1/0",
                "tasks/uses_broken.py": "import tasks.broken",
                "tasks/registry.py": (
                    'TASKS = ("tasks.mail.sned", "tasks.broken.f", "tasks.broken.g", "tasks.uses_broken.h", "x.y")\n'
                    "LIFESPAN = 1"
                ),
            },
        )
        starts = ["tasks/mail.py has no 'sned'", "tasks/broken.py:1: Zero", "there is no module x", "LIFESPAN is 1"]
        assert [line[: len(start)] for line, start in zip(problems(), starts, strict=True)] == starts

    def test_a_module_that_fails_is_run_only_once(self, root: Path) -> None:
        """A module that fails is run once, however many of its tasks are listed."""
        write(
            root,
            {
                "tasks/broken.py": "import pathlib\nwith pathlib.Path('runs').open('a') as f: f.write('x')\n1/0\n",
                "tasks/registry.py": 'TASKS = ("tasks.broken.f", "tasks.broken.g", "tasks.broken.h")',
            },
        )
        problem()
        assert (root / "runs").read_text() == "x"


class TestNames:
    def test_two_tasks_of_one_name_are_an_error_that_shows_both(self, root: Path) -> None:
        """The error shows where both tasks are, and how to give one of them another name."""
        write(
            root,
            {
                "tasks/mail.py": SEND,
                "tasks/sms.py": SEND,
                "tasks/registry.py": 'TASKS = ("tasks.mail.send", "tasks.sms.send")',
            },
        )
        line = problem()
        assert "two tasks are called 'send'" in line
        assert "tasks/mail.py:" in line
        assert "tasks/sms.py:" in line
        assert "@task(name=" in line

    def test_a_task_that_is_listed_twice_is_reported_as_such(self, root: Path) -> None:
        """A task that is listed twice is not reported as two tasks of one name."""
        write(root, {"tasks/mail.py": SEND, "tasks/registry.py": 'TASKS = ("tasks.mail.send", "tasks.mail.send")'})
        assert problem() == "tasks.mail.send is listed twice: list it once."

    @pytest.mark.parametrize(
        "two",
        [
            "from worker import cron\nasync def send(): ...\na, b = cron(minute=1)(send), cron(minute=2)(send)\n",
            "import arq\nfrom arq.worker import func\nasync def send(ctx): ...\n"
            "a, b = func(send), arq.cron(send, minute=2, name='send')\n",
            "from worker import cron, task\n@task\nasync def a(): ...\nb = cron(minute=2)(a)\n",
        ],
    )
    def test_two_schedules_of_one_function_and_name_are_an_error_with_the_remedy(self, root: Path, two: str) -> None:
        """The error says to give one of the two tasks another name."""
        write(root, {"tasks/mail.py": two, "tasks/registry.py": 'TASKS = ("tasks.mail.a", "tasks.mail.b")'})
        line = problem()
        assert "tasks.mail.a and tasks.mail.b are two tasks of one function (tasks/mail.py:" in line
        assert "name='other'" in line

    def test_several_of_arqs_crons_of_one_function_are_one_task(self, root: Path) -> None:
        """As in arq, which names a job by its function."""
        two = "import arq\nasync def f(ctx): ...\na, b = (arq.cron(f, hour=hour) for hour in (1, 13))\n"
        write(root, {"tasks/mail.py": two, "tasks/registry.py": "from tasks.mail import a, b\nTASKS = (a, b)"})
        (task,) = load().tasks.values()
        assert (task.name, len(task.schedules)) == ("cron:f", 2)

    def test_two_schedules_of_one_function_with_two_names_are_two_tasks(self, root: Path) -> None:
        """Two schedules of one function are two tasks if they have two names."""
        two = "from worker import cron\nasync def f(): ...\na, b = cron(minute=1)(f), cron(minute=2, name='b')(f)\n"
        write(root, {"tasks/mail.py": two, "tasks/registry.py": 'TASKS = ("tasks.mail.a", "tasks.mail.b")'})
        assert list(load().tasks) == ["f", "b"]

    def test_a_task_that_is_listed_under_two_paths_is_reported_as_the_same(self, root: Path) -> None:
        """A task that is listed where it is defined and where it is imported is reported as the same task."""
        write(
            root,
            {
                "tasks/mail.py": SEND,
                "tasks/sms.py": "from tasks.mail import send\n__all__ = ['send']\n",
                "tasks/registry.py": 'TASKS = ("tasks.mail.send", "tasks.sms.send")',
            },
        )
        assert "tasks.mail.send and tasks.sms.send are the same task" in problem()


CIRCLE = {
    "tasks/__init__.py": "",
    "tasks/b_first.py": "from worker import task\nfrom tasks.a_second import g\n@task\nasync def f() -> None: ...\n",
    "tasks/a_second.py": "from worker import task\n\nimport tasks.c_third\n@task\nasync def g() -> None: ...\n",
    "tasks/c_third.py": "from tasks.b_first import f\n",
}
CHAIN = (
    "circular import: tasks/a_second.py:3 imports tasks.c_third, tasks/c_third.py:1 imports tasks.b_first, "
    "tasks/b_first.py:2 imports tasks.a_second."
)


class TestCircularImports:
    @pytest.mark.parametrize(
        "listed",
        [
            ["tasks.b_first.f", "tasks.a_second.g"],
            ["tasks.a_second.g", "tasks.b_first.f"],
            ["tasks.outside.h"],
        ],
    )
    def test_a_circular_import_is_reported_once_and_alike_whichever_module_came_first(
        self, root: Path, listed: list[str]
    ) -> None:
        """The whole chain is reported once, and is the same whichever of its modules was imported first."""
        write(
            root,
            {**CIRCLE, "tasks/outside.py": "import tasks.b_first", "tasks/registry.py": f"TASKS = {tuple(listed)!r}"},
        )
        assert problem().startswith(CHAIN)

    def test_a_missing_name_of_a_half_imported_module_is_a_circular_import(self, root: Path) -> None:
        """A name that a half-imported module does not have yet is a circular import too."""
        write(
            root,
            {
                "tasks/__init__.py": "",
                "tasks/a.py": "import tasks.b\n\ndef f(): ...\n",
                "tasks/b.py": "import tasks.a as a\na.f()\n",
                "tasks/registry.py": 'TASKS = ("tasks.a.f",)',
            },
        )
        assert problem().startswith("circular import: tasks/a.py:1 imports tasks.b, tasks/b.py:2 imports tasks.a.")

    def test_loading_the_registry_from_a_module_of_tasks_is_a_circular_import(self, root: Path) -> None:
        """A module of tasks that loads the registry while it is imported leads to itself."""
        write(
            root,
            {
                "tasks/__init__.py": "",
                "tasks/a.py": "from worker.registry import load\nload()\n" + SEND,
                "tasks/registry.py": 'TASKS = ("tasks.a.send",)',
            },
        )
        assert "circular import: tasks/a.py:2 imports tasks.a" in problem("tasks.a")

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            ("import tasks.b", "import tasks.a"),
            ("from tasks import b", "from tasks import a"),
            ("from . import b", "from . import a"),
            ("import tasks.b as other", "import tasks.a as other"),
            ("limit = 7\nimport tasks.b", "from tasks.a import limit"),
            ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tasks.b import pong", "import tasks.a"),
            ("try:\n    from tasks.b import pong\nexcept ImportError:\n    pong = None", "from tasks.a import ping"),
            ("def __getattr__(name): return 1\nimport tasks.b", "from tasks.a import anything"),
            ("from tasks.common import *\nimport tasks.b", "from tasks.a import limit"),
            ("with open(__file__) as limit: pass\nimport tasks.b", "from .a import limit"),
        ],
    )
    def test_a_circular_import_that_works_from_both_sides_is_allowed(self, root: Path, a: str, b: str) -> None:
        """Modules whose tasks enqueue each other may import each other in every way that works from both sides."""
        write(
            root,
            {
                "tasks/__init__.py": "",
                "tasks/common.py": "limit = 7\n",
                "tasks/a.py": f"{a}\n{SEND.replace('send', 'ping')}",
                "tasks/b.py": f"{b}\n{SEND.replace('send', 'pong')}",
                "tasks/registry.py": 'TASKS = ("tasks.a.ping", "tasks.b.pong")',
            },
        )
        assert list(load().tasks) == ["ping", "pong"]

    def test_a_package_and_its_modules_may_import_from_each_other(self, root: Path) -> None:
        """A package is always imported before its modules, so this works from any side."""
        write(
            root,
            {
                "tasks/__init__.py": "limit = 7\nfrom tasks.mail import send\n",
                "tasks/mail.py": "from tasks import limit\n" + SEND,
                "tasks/registry.py": 'TASKS = ("tasks.mail.send",)',
            },
        )
        assert list(load().tasks) == ["send"]


PROJECT = {
    "project/tasks/__init__.py": "",
    "project/tasks/mail.py": SEND,
    "project/tasks/registry.py": 'TASKS = ("tasks.mail.send",)',
}
INSTALLED = {
    "installed/tasks/__init__.py": "",
    "installed/tasks/other.py": SEND.replace("send", "stranger"),
    "installed/tasks/registry.py": 'TASKS = ("tasks.other.stranger",)',
}


class TestWhatPythonFinds:
    def test_the_project_wins_over_an_installed_package_of_the_same_name(self, tmp_path: Path, tandem: Path) -> None:
        """The project wins although the installed `tasks` is first on sys.path, as under arq's command."""
        write(tmp_path, {**PROJECT, **INSTALLED, "bin/start.py": LOAD})
        done = python(str(tmp_path / "bin/start.py"), cwd=tmp_path / "project", path=[tmp_path / "installed", tandem])
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "send", "")

    def test_a_project_that_is_installed_is_found_from_any_folder(self, tmp_path: Path, tandem: Path) -> None:
        """A project that is installed is found from any folder."""
        write(tmp_path, {**INSTALLED, "elsewhere/notes.txt": ""})
        done = python("-c", LOAD, cwd=tmp_path / "elsewhere", path=[tmp_path / "installed", tandem])
        assert (done.returncode, done.stdout.strip()) == (0, "stranger")

    def test_another_tasks_package_that_is_already_imported_is_an_error_that_names_both(
        self, tmp_path: Path, tandem: Path
    ) -> None:
        """If another `tasks` is imported already, it is kept: the error names both."""
        write(tmp_path, {**PROJECT, **INSTALLED, "bin/start.py": f"import tasks\n{LOAD}"})
        done = python(str(tmp_path / "bin/start.py"), cwd=tmp_path / "project", path=[tmp_path / "installed", tandem])
        assert done.returncode != 0
        assert str(tmp_path / "installed/tasks/__init__.py") in done.stderr
        assert str(tmp_path / "project/tasks") in done.stderr
        assert "Traceback" not in done.stderr

    def test_an_installed_package_that_hides_a_folder_without_init_is_an_error(
        self, tmp_path: Path, tandem: Path
    ) -> None:
        """Python prefers an installed package to a folder without __init__.py: the error names both, and the remedy."""
        write(tmp_path, {**PROJECT, **INSTALLED})
        (tmp_path / "project/tasks/__init__.py").unlink()
        done = python("-c", LOAD, cwd=tmp_path / "project", path=[tmp_path / "installed", tandem])
        assert done.returncode != 0
        assert str(tmp_path / "installed/tasks/__init__.py") in done.stderr
        assert f"add an empty {tmp_path / 'project/tasks/__init__.py'}" in done.stderr

    def test_a_package_of_the_project_that_tandems_own_hides_is_an_error_that_names_both(
        self, tmp_path: Path, tandem: Path
    ) -> None:
        """A project's own `db` cannot be imported, as Tandem's is: the error names both."""
        write(tmp_path, {**PROJECT, "project/db/__init__.py": "", "project/db/models.py": ""})
        write(tmp_path, {"project/tasks/mail.py": "from db import models\n", "bin/start.py": LOAD})
        done = python(str(tmp_path / "bin/start.py"), cwd=tmp_path / "project", path=[tandem])
        assert done.returncode != 0
        assert done.stderr.startswith("tasks/mail.py:1 imports db, but db is ")
        assert str(tandem / "db/__init__.py") in done.stderr
        assert str(tmp_path / "project/db") in done.stderr

    @pytest.mark.parametrize("command", [["-m", "tasks.mail"], ["tasks/mail.py"]], ids=["module", "file"])
    def test_a_module_of_tasks_that_is_run_as_a_program_is_an_error(
        self, tmp_path: Path, tandem: Path, command: list[str]
    ) -> None:
        """Such a module is imported twice: the error names the file and both modules."""
        write(
            tmp_path, {**PROJECT, "project/tasks/mail.py": f"{SEND}\nif __name__ == '__main__':\n    exec({LOAD!r})\n"}
        )
        done = python(*command, cwd=tmp_path / "project", path=[tandem])
        assert done.returncode != 0
        assert done.stderr.startswith("tasks/mail.py is imported twice, as tasks.mail and as __main__")

    def test_a_module_that_is_imported_under_two_names_is_an_error(self, tmp_path: Path, tandem: Path) -> None:
        """A module that is imported without the package's name too is reported with both names."""
        write(tmp_path, {**PROJECT, "project/tasks/registry.py": 'import mail\nTASKS = ("tasks.mail.send",)'})
        done = python("-c", LOAD, cwd=tmp_path / "project", path=[tandem, tmp_path / "project/tasks"])
        assert done.returncode != 0
        assert done.stderr.startswith("tasks/mail.py is imported twice, as tasks.mail and as mail")


class TestArqCommand:
    """`arq worker.Settings`, which puts its own folder first on sys.path and the working directory last."""

    @pytest.mark.parametrize(
        ("files", "named"),
        [
            (
                {"installed/tasks/__init__.py": "", "project/tasks/mail.py": SEND},
                ["installed/tasks/__init__.py", "project/tasks"],
            ),
            ({f"project/{name}": text for name, text in CIRCLE.items()}, ["tasks/a_second.py:3", "tasks/b_first.py:2"]),
        ],
        ids=["shadow", "circle"],
    )
    def test_an_error_of_the_registry_ends_arqs_command_with_exit_code_2(
        self, tmp_path: Path, tandem: Path, files: dict[str, str], named: list[str]
    ) -> None:
        """An error of the registry ends arq with exit code 2 and a line that names both files."""
        write(tmp_path, {**files, "project/tasks/registry.py": 'TASKS = ("tasks.b_first.f",)'})
        arq = str(Path(sys.executable).with_name("arq"))
        done = python(arq, "worker.Settings", cwd=tmp_path / "project", path=[tmp_path / "installed", tandem])
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert [name for name in named if name not in done.stderr] == []


def test_load_returns_a_registry(root: Path) -> None:
    """`load` returns a `Registry`."""
    write(root, {"tasks/mail.py": SEND, "tasks/registry.py": 'TASKS = ("tasks.mail.send",)'})
    assert isinstance(load(), Registry)
