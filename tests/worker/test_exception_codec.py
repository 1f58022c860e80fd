"""Exceptions as data: how they come back from the wire."""

import asyncio
import builtins
import concurrent.futures
from typing import Any

import pytest
from pydantic_core import from_json, to_json
from sqlalchemy.exc import IntegrityError

from worker.errors import JobFailed
from worker.exception_codec import error_data, error_from


class Unknown(Exception):  # noqa: N818 - any exception
    """An exception class that the other side need not have."""


class Unprintable(Exception):  # noqa: N818 - any exception
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


BUILT_IN = [
    kind
    for kind in vars(builtins).values()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, UnicodeError | SyntaxError | BaseExceptionGroup | Warning)
]


def across(error: BaseException) -> BaseException:
    """Return `error` as it comes back from the wire."""
    data = from_json(to_json(error_data(error)))
    return error_from(data)


class TestBuiltIn:
    @pytest.mark.parametrize("kind", BUILT_IN)
    def test_a_built_in_exception_comes_back_as_itself_with_its_arguments(self, kind: type[Exception]) -> None:
        """A caller that waits for the result can catch it by its class; its arguments are there."""
        error = across(kind("why", 7))
        assert (type(error), error.args) == (kind, ("why", 7))

    def test_a_built_in_exception_comes_back_with_its_whole_message(self) -> None:
        """An `OSError` keeps its file, a `SyntaxError` its place, a `UnicodeDecodeError` its bytes."""
        assert str(across(raised(lambda: open("/nowhere/at/all")))) == (  # noqa: PTH123, SIM115 - it must fail
            "[Errno 2] No such file or directory: '/nowhere/at/all'"
        )
        for doing in (lambda: compile("a b", "file.py", "exec"), b"\xff".decode, lambda: dict[Any, Any]()[1, "a"]):
            error = raised(doing)
            returned = across(error)
            assert (type(returned), str(returned)) == (type(error), str(error))

    def test_cancelled_error_comes_back_as_itself(self) -> None:
        """A caller that waits for an aborted job gets `asyncio.CancelledError`."""
        error = across(asyncio.CancelledError("aborted"))
        assert (type(error), error.args) == (asyncio.CancelledError, ("aborted",))

    def test_a_group_comes_back_with_its_members(self) -> None:
        """A `TaskGroup`'s errors can be told apart with ``except*``, also those that are not built in."""
        group = ExceptionGroup("two", [ValueError(1), ExceptionGroup("inner", [Unknown("x")])])
        error = across(group)
        assert isinstance(error, ExceptionGroup)
        value, inner = error.exceptions
        assert isinstance(value, ValueError)
        assert isinstance(inner, ExceptionGroup)
        assert isinstance(inner.exceptions[0], JobFailed)

    def test_a_built_in_exception_brings_the_workers_traceback_as_a_note(self) -> None:
        """The exception shows where in the worker it was raised."""
        (note,) = across(raised(lambda: int("x"))).__notes__
        assert "in raised" in note
        assert "ValueError: invalid literal" in note

    @pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
    def test_an_exception_that_would_end_the_asking_process_comes_back_as_job_failed(
        self, kind: type[BaseException]
    ) -> None:
        """A task's `sys.exit()` does not end the web app that waits for its result."""
        error = across(kind("x"))
        assert isinstance(error, JobFailed)
        assert error.type == kind.__name__

    @pytest.mark.parametrize("name", ["print", "object", "__import__", "int", "no such thing"])
    def test_a_built_in_that_is_no_exception_is_never_called(self, name: str) -> None:
        """Data that names anything but an exception class comes back as `JobFailed`."""
        error = error_from({"type": name, "message": "m", "args": ["x"]})
        assert isinstance(error, JobFailed)

    def test_malformed_data_comes_back_as_job_failed(self) -> None:
        """Data that other software has written raises no error while it is read."""
        for data in (
            {"type": "UnicodeDecodeError", "args": ["x"]},
            {"type": "ExceptionGroup", "args": []},
            {"type": "ExceptionGroup", "args": ["x"], "exceptions": 3},
            {"type": "ValueError", "args": {"a": 1}},
            {"type": 3},
            {},
            None,
            "unable to serialize",
        ):
            assert isinstance(error_from(data), JobFailed)


class TestOthers:
    def test_any_other_exception_comes_back_as_job_failed(self) -> None:
        """Any other exception comes back with its class's name, its message and the worker's traceback."""
        error = across(raised(lambda: throw(Unknown("bad luck"))))
        assert isinstance(error, JobFailed)
        assert error.type == f"{__name__}.Unknown"
        assert error.message == "bad luck"
        assert "in throw" in error.traceback
        assert str(error) == f"{__name__}.Unknown: bad luck"

    def test_a_job_failed_passes_unchanged(self) -> None:
        """A task that waited for another job passes the failure of that job on."""
        error = across(JobFailed("app.Oops", "no", "Traceback ..."))
        assert isinstance(error, JobFailed)
        assert (error.type, error.message, error.traceback) == ("app.Oops", "no", "Traceback ...")

    def test_an_exception_named_like_a_built_in_is_not_taken_for_it(self) -> None:
        """`concurrent.futures.CancelledError` and a project's own `TimeoutError` come back as `JobFailed`."""
        for kind in (concurrent.futures.CancelledError, type("TimeoutError", (Exception,), {})):
            assert isinstance(across(kind()), JobFailed)

    def test_a_database_error_keeps_the_message_of_the_server(self) -> None:
        """SQLAlchemy's exceptions come back with the server's message."""
        error = across(IntegrityError("INSERT ...", {"a": 1}, ValueError("duplicate key")))
        assert isinstance(error, JobFailed)
        assert "duplicate key" in error.message


class TestBounds:
    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(lambda: ValueError("x" * 10**7), id="a long message"),
            pytest.param(lambda: ValueError(*range(10**5)), id="many arguments"),
            pytest.param(lambda: ValueError(10**100_000), id="a long number"),
            pytest.param(lambda: raised(recurse), id="a deep traceback"),
            pytest.param(lambda: ExceptionGroup("g", [ValueError("x" * 1000)] * 1000), id="a wide group"),
            pytest.param(lambda: nested_group(500), id="a deep group"),
            pytest.param(lambda: UnicodeDecodeError("utf-8", b"\xff" * 10**6, 0, 1, "bad"), id="many bytes"),
        ],
    )
    def test_the_size_of_an_encoded_exception_is_bounded(self, error: Any) -> None:
        """An exception takes less than 200 kB of Redis."""
        assert len(to_json(error_data(error()))) < 200_000

    @pytest.mark.parametrize(
        "error",
        [
            pytest.param(lambda: ValueError("\udcff"), id="a lone surrogate"),
            pytest.param(lambda: raised(lambda: open("/\udcff")), id="a file name of no encoding"),  # noqa: PTH123, SIM115
            pytest.param(lambda: JobFailed("t", "\udcff"), id="a lone surrogate at second hand"),
            pytest.param(Unprintable, id="a __str__ that raises"),
            pytest.param(lambda: ValueError(Unprintable()), id="an argument that cannot be printed"),
            pytest.param(lambda: ValueError([[[[[[[[1]]]]]]]]), id="nested arguments"),
            pytest.param(lambda: ValueError(float("nan"), {1: 2}, {3}), id="arguments that JSON cannot express"),
            pytest.param(lambda: ExceptionGroup("\udcff", [ValueError(1)]), id="a group with a surrogate"),
        ],
    )
    def test_every_exception_can_be_encoded_and_decoded(self, error: Any) -> None:
        """An exception with unusual arguments, or one that cannot be printed, crosses the wire."""
        assert isinstance(across(error()), BaseException)

    def test_a_cut_traceback_keeps_both_ends(self) -> None:
        """A long traceback keeps where it began and what was raised."""
        text = error_data(raised(recurse))["traceback"]
        assert text.startswith("Traceback")
        assert "RecursionError" in text[-300:]


def throw(error: BaseException) -> None:
    raise error


def raised(doing: Any) -> BaseException:
    """Return the exception that `doing` raises, with its traceback."""
    try:
        doing()
    except BaseException as error:  # noqa: BLE001 - the case under test
        return error
    raise AssertionError("nothing was raised")


def recurse(depth: int = 0) -> None:
    recurse_on(depth + 1)


def recurse_on(depth: int) -> None:
    recurse(depth)


def nested_group(depth: int) -> ExceptionGroup[Exception]:
    group: ExceptionGroup[Exception] = ExceptionGroup("leaf", [ValueError(1)])
    for _ in range(depth):
        group = ExceptionGroup("level", [group])
    return group
