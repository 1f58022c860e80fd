"""Signatures: which parameters are payload, which are injected, and that arguments arrive as they were sent."""

import inspect
import sys
import textwrap
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy.ext.asyncio
import sqlalchemy.orm
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, EmailStr, Field, Json, PrivateAttr, SecretStr, ValidationError, computed_field
from pydantic_core import from_json
from typing_extensions import TypeAliasType, TypedDict

import db
from worker.client.signature import (
    InjectedArqContext,
    InjectedContext,
    InjectedSession,
    Signature,
)
from worker.context import JobContext, Resource
from worker.errors import EnqueueError, PayloadNotJSONError, TaskDefinitionError
from worker.message import Message, dump, encode

TEXT = st.text(st.characters(codec="utf-8"))
INTEGERS = st.integers() | st.integers(-(10**4000), 10**4000)
REPLICA = db.Database("postgresql+asyncpg://localhost/replica")


def type_name(value: Any) -> str:
    """Return a test's name for a value that may be an annotation."""
    return value.__name__ if isinstance(value, type) else type(value).__name__


def signature_of(annotation: Any) -> Signature:
    """Return the signature of a task that takes one argument of this type."""

    async def fn(value: Any) -> None: ...

    fn.__annotations__["value"] = annotation
    return Signature(fn)


cached_signature_of = cache(signature_of)


def across(annotation: Any, value: Any) -> Any:
    """Return `value` as the task gets it."""
    signature = cached_signature_of(annotation)
    message = Message.decode("id", encode("fn", signature.validate((value,), {}), 1))
    return signature.restore(message.args, message.kwargs)["value"]


class Colour(Enum):
    RED = "red"
    BLUE = ("b", 2)


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


class Text(str):
    __slots__ = ()


@dataclass
class Point:
    x: int
    at: datetime
    raw: bytes = b"\xff"


@dataclass(eq=False)
class Uncomparable:
    x: int
    inner: list[Point]


class Order(BaseModel):
    number: int = Field(alias="orderNumber")
    placed: datetime
    lines: list[tuple[str, Decimal]] = []

    @computed_field  # type: ignore[prop-decorator]  # as pydantic's documentation has it
    @property
    def size(self) -> int:
        return len(self.lines)


class Anything(BaseModel):
    value: Any


class Exclusive(BaseModel):
    kept: int
    left_out: int = Field(default=0, exclude=True)
    _hidden: int = PrivateAttr(default=0)

    def hide(self, value: int) -> "Exclusive":
        self._hidden = value
        return self


class Counted(BaseModel):
    words: list[str]

    @cached_property
    def count(self) -> int:
        return len(self.words)


class Base(BaseModel):
    a: int = 0


class Derived(Base):
    b: int = 0


class Movie(TypedDict):
    title: str
    poster: bytes


AWARE = st.datetimes(timezones=st.timezones() | st.just(UTC), allow_imaginary=False)
SCALARS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, INTEGERS),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (str, TEXT),
    (bool, st.booleans()),
    (bytes, st.binary()),
    (datetime, st.datetimes()),
    (date, st.dates()),
    (time, st.times()),
    (timedelta, st.timedeltas()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (UUID, st.uuids()),
    (Path, TEXT.map(Path)),
    (Colour, st.sampled_from([Colour.RED])),
    (Level, st.sampled_from(Level)),
    (Literal["a", 1] | None, st.sampled_from(["a", 1, None])),
    (complex, st.complex_numbers(allow_nan=False, allow_infinity=False)),
    (type(None), st.none()),
]
MODELS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (Point, st.builds(Point, x=INTEGERS, at=st.datetimes(), raw=st.binary())),
    (
        Order,
        st.builds(
            Order,
            orderNumber=st.integers(),
            placed=st.datetimes(timezones=st.just(UTC)),
            lines=st.lists(st.tuples(TEXT, st.decimals(allow_nan=False, allow_infinity=False)), max_size=2),
        ),
    ),
    (Movie, st.fixed_dictionaries({"title": TEXT, "poster": st.binary()})),
]


ZONES = st.none() | st.timezones() | st.just(UTC) | st.just(timezone(timedelta(hours=5, minutes=30)))
DATETIMES = st.datetimes(timezones=ZONES, allow_imaginary=True)
TIMES = st.builds(time, st.integers(0, 23), st.integers(0, 59), fold=st.integers(0, 1), tzinfo=ZONES)
MOMENTS = DATETIMES | TIMES


class Clock(BaseModel):
    at: datetime | time


@dataclass
class Alarm:
    at: datetime | time


class Tick(NamedTuple):
    at: datetime | time


_Moment: TypeAlias = datetime | time
CLOCKS: dict[Any, st.SearchStrategy[tuple[Any, list[_Moment]]]] = {
    datetime: DATETIMES.map(lambda it: (it, [it])),
    time: TIMES.map(lambda it: (it, [it])),
    list[datetime]: DATETIMES.map(lambda it: ([it], [it])),
    tuple[int, time | None]: TIMES.map(lambda it: ((1, it), [it])),
    dict[str, set[time]]: TIMES.map(lambda it: ({"k": {it}}, [it])),
    _Moment: MOMENTS.map(lambda it: (it, [it])),
    list[_Moment]: MOMENTS.map(lambda it: ([it], [it])),
    tuple[_Moment, ...]: st.lists(MOMENTS, max_size=2).map(lambda them: (tuple(them), them)),
    set[_Moment]: MOMENTS.map(lambda it: ({it}, [it])),
    deque[_Moment]: MOMENTS.map(lambda it: (deque([it]), [it])),
    dict[str, _Moment]: MOMENTS.map(lambda it: ({"k": it}, [it])),
    Clock: MOMENTS.map(lambda it: (Clock(at=it), [it])),
    Alarm: MOMENTS.map(lambda it: (Alarm(it), [it])),
    Tick: MOMENTS.map(lambda it: (Tick(it), [it])),
}


def has_offset(moment: _Moment) -> bool:
    """Return whether the moment's offset can be written as JSON."""
    if moment.tzinfo is None:
        return True
    offset = moment.utcoffset()
    return offset is not None and offset % timedelta(minutes=1) == timedelta(0)


def depends_on_fold(moment: _Moment) -> bool:
    """Return whether the clock was set forward or back at this time: `==` then finds it in no other zone (PEP 495)."""
    return moment.replace(fold=0).utcoffset() != moment.replace(fold=1).utcoffset()


def told(value: Any) -> Any:
    """Return a value in a form to compare: of a moment its figures and offset too, which `==` ignores."""
    match value:
        case datetime() | time():
            return type(value), value.replace(tzinfo=None), value.tzinfo is None, value.utcoffset()
        case dict():
            return {key: told(inner) for key, inner in value.items()}
        case Clock() | Alarm():
            return type(value), told(value.at)
        case list() | tuple() | set() | deque():
            return type(value), [told(inner) for inner in value]
        case _:
            return value


class TestRoundTrip:
    @pytest.mark.parametrize(("annotation", "values"), SCALARS + MODELS, ids=type_name)
    @given(data=st.data())
    def test_an_argument_arrives_equal_and_of_the_same_type(
        self, annotation: Any, values: st.SearchStrategy[Any], data: st.DataObject
    ) -> None:
        """A value of the annotated type arrives equal and of the same type, by itself and in containers."""
        value = data.draw(values)
        received = across(annotation, value)
        assert (received, type(received)) == (value, type(value))
        assert across(list[annotation], [value, value]) == [value, value]
        assert across(dict[str, list[annotation | None]], {"k": [value, None]}) == {"k": [value, None]}
        assert across(tuple[annotation, int], (value, 1)) == (value, 1)

    @given(AWARE)
    def test_a_datetime_keeps_its_moment_and_offset(self, moment: datetime) -> None:
        """JSON carries a zone's offset and not its name. A historical offset with seconds is refused."""
        offset = moment.utcoffset()
        assert offset is not None
        if offset % timedelta(minutes=1):
            with pytest.raises(PayloadNotJSONError, match="JSON has no time zones"):
                across(datetime, moment)
        else:
            received = across(datetime, moment)
            assert (received.replace(tzinfo=None), received.utcoffset()) == (moment.replace(tzinfo=None), offset)

    @pytest.mark.parametrize("annotation", CLOCKS, ids=str)
    @given(data=st.data())
    def test_a_datetime_or_a_time_arrives_unchanged_or_is_refused(self, annotation: Any, data: st.DataObject) -> None:
        """No datetime or time is changed, in any zone and any container. A set cannot tell repeated hours apart."""
        wrapped, moments = data.draw(CLOCKS[annotation])
        try:
            received = across(annotation, wrapped)
        except PayloadNotJSONError:
            in_doubt = isinstance(wrapped, set) and any(map(depends_on_fold, moments))
            assert in_doubt or not all(map(has_offset, moments))
            return
        assert all(map(has_offset, moments))
        assert told(received) == told(wrapped)

    def test_both_moments_of_a_repeated_hour_arrive(self) -> None:
        """Both moments arrive, also inside a model, although `==` finds neither equal to the sent one."""
        for fold in (0, 1):
            moment = datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Berlin"))
            order = across(Order, Order(orderNumber=1, placed=moment))
            for received in (across(datetime, moment), across(list[datetime] | None, [moment])[0], order.placed):
                assert received.timestamp() == moment.timestamp()

    def test_a_subclass_of_datetime_arrives_as_a_datetime(self) -> None:
        """Libraries that freeze the clock have such subclasses; they arrive as datetimes in a model too."""

        class Frozen(datetime):
            pass

        moment = Frozen(2026, 1, 2, tzinfo=UTC)
        for received in (across(datetime, moment), across(Order, Order(orderNumber=1, placed=moment)).placed):
            assert (received, type(received)) == (moment, datetime)

    def test_the_cached_property_of_a_model_is_not_sent(self) -> None:
        """A value that `functools.cached_property` keeps beside the fields is no part of the model."""
        counted = Counted(words=["a", "b"])
        assert counted.count == 2
        received = across(Counted, counted)
        assert (received, received.__dict__) == (counted, {"words": ["a", "b"]})

    @given(
        st.sets(st.integers()),
        st.frozensets(TEXT),
        st.dictionaries(st.integers(), st.uuids()),
        st.dictionaries(st.binary(), st.booleans()),
    )
    def test_sets_and_dictionary_keys_arrive_with_their_types(
        self, numbers: set[int], words: frozenset[str], by_number: dict[int, UUID], by_bytes: dict[bytes, bool]
    ) -> None:
        """Containers and keys that JSON does not have arrive with the types of the annotation."""
        assert across(dict[bytes, bool], by_bytes) == by_bytes
        assert across(set[int], numbers) == numbers
        assert across(frozenset[str], words) == words
        assert across(dict[int, UUID], by_number) == by_number

    @given(st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT | st.uuids())
    def test_a_value_of_a_union_arrives_unchanged_or_is_refused(self, value: Any) -> None:
        """No value of a union arrives as another of its types."""
        try:
            received = across(int | float | UUID | str, value)
        except PayloadNotJSONError:
            return
        assert (received, type(received)) == (value, type(value))

    @given(
        st.recursive(
            st.none() | st.booleans() | INTEGERS | st.floats() | TEXT | st.binary() | st.dates(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.tuples(inner)
                | st.dictionaries(TEXT | st.integers(), inner, max_size=3)
            ),
            max_leaves=8,
        )
    )
    def test_an_unannotated_value_arrives_unchanged_or_is_refused(self, value: Any) -> None:
        """A value without an annotation never arrives changed."""
        try:
            received = across(Any, value)
        except PayloadNotJSONError:
            return
        assert repr(received) == repr(value)

    def test_a_model_with_aliases_and_computed_fields_arrives_whole(self) -> None:
        """Fields are sent by their aliases, and computed fields are not sent."""
        order = Order(orderNumber=3, placed=datetime(2026, 1, 2, tzinfo=UTC), lines=[("a", Decimal("1.50"))])
        received = across(Order, order)
        assert (received, received.size) == (order, 1)

    def test_a_dataclass_without_equality_is_compared_field_by_field(self) -> None:
        """A type without ``==`` is compared field by field."""
        received = across(Uncomparable, Uncomparable(1, [Point(1, datetime(2026, 1, 1))]))  # noqa: DTZ001 - naive on purpose
        assert received.inner == [Point(1, datetime(2026, 1, 1))]  # noqa: DTZ001 - likewise


class TestRefused:
    @pytest.mark.parametrize(
        "value",
        [
            (1, 2),
            {1},
            frozenset(),
            {1: "a"},
            {"a": (1,)},
            [[{"a": {2}}]],
            Text("a"),
            [Text("a")],
            {Text("a"): 1},
            Level.LOW,
            Word.YES,
            Colour.RED,
            b"raw",
            datetime(2026, 1, 1, tzinfo=UTC),
            Decimal(1),
            uuid4(),
            Path("/a"),
            1j,
            float("nan"),
            [float("inf")],
            Point(1, datetime(2026, 1, 1, tzinfo=UTC)),
            Base(),
            "\ud800",
            object(),
            len,
            10**5000,
        ],
        ids=type_name,
    )
    def test_a_value_that_json_would_change_needs_a_precise_annotation(self, value: Any) -> None:
        """Without a precise annotation, an argument that JSON would change raises in the caller."""
        for annotation in (Any, object, list[Any], dict[str, Any], Mapping[str, object], Any | None):
            wrapped = value
            if annotation == list[Any]:
                wrapped = [value]
            elif annotation in (dict[str, Any], Mapping[str, object]):
                wrapped = {"k": value}
            with pytest.raises(PayloadNotJSONError):
                signature_of(annotation).validate((wrapped,), {})

    def test_a_function_without_annotations_takes_only_values_that_json_keeps(self) -> None:
        """An arq function without annotations gets JSON's values, and its caller an error for others."""

        async def resize(ctx, image, sizes=(1, 2)) -> None: ...  # type: ignore[no-untyped-def]  # as arq's users write them

        signature = Signature(resize)
        assert signature.validate(("a",), {}) == b'{"image":"a"}'
        with pytest.raises(PayloadNotJSONError, match="sizes: JSON would change this tuple"):
            signature.validate(("a", (1, 2)), {})

    @pytest.mark.parametrize(
        ("annotation", "value"),
        [
            (UUID | str, str(uuid4())),
            (datetime | str, "2026-01-01T00:00:00Z"),
            (SecretStr, SecretStr("x")),
            (Anything, Anything(value=(1, 2))),
            (Anything, Anything(value=Level.LOW)),
            (Exclusive, Exclusive(kept=1, left_out=2)),
            (Exclusive, Exclusive(kept=1).hide(5)),
            (Base, Derived(b=3)),
            (dict[tuple[int, int], str], {(1, 2): "a"}),
            (Sequence[Any], ["a", ("b",)]),
            (Callable[[], int], len),
        ],
        ids=type_name,
    )
    def test_an_annotated_value_that_would_arrive_changed_is_refused(self, annotation: Any, value: Any) -> None:
        """Ambiguous unions, secrets and excluded fields would arrive changed, so they are refused."""
        with pytest.raises(PayloadNotJSONError):
            signature_of(annotation).validate((value,), {})

    @pytest.mark.parametrize("annotation", [float, Decimal, list[float], dict[str, float], float | None, Point | float])
    @pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
    def test_nan_and_the_infinities_are_refused(self, annotation: Any, number: str) -> None:
        """NaN and the infinities are refused, wherever they are."""
        value: Any = float(number)
        if annotation == list[float]:
            value = [value]
        elif annotation == dict[str, float]:
            value = {"a": value}
        with pytest.raises(ValidationError, match="finite"):
            signature_of(annotation).validate((value,), {})

    @pytest.mark.parametrize("depth", [198, 199, 200, 250, 100_000])
    def test_a_value_that_is_nested_too_deep_is_refused(self, depth: int) -> None:
        """A value that the worker could not read raises in the caller."""
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        for annotation in (Any, list[Any]):
            with pytest.raises((PayloadNotJSONError, ValidationError)):
                across(annotation, value)

    def test_an_integer_of_more_than_4300_digits_is_refused(self) -> None:
        """An integer of more than 4,300 digits is refused, annotated or not."""
        for annotation in (int, Any, list[int]):
            value = [10**4400] if annotation == list[int] else 10**4400
            with pytest.raises((PayloadNotJSONError, ValidationError)):
                signature_of(annotation).validate((value,), {})

    def test_a_path_that_is_not_utf_8_is_refused_with_a_reason(self) -> None:
        """The error is Tandem's own, and not that of the codec."""
        with pytest.raises(PayloadNotJSONError, match=r"fn\(value.*surrogates not allowed"):
            signature_of(Path).validate((Path("/\udcff"),), {})

    def test_the_error_is_an_enqueue_error_and_a_type_error(self) -> None:
        """Callers may catch it as either."""
        assert issubclass(PayloadNotJSONError, EnqueueError)
        assert issubclass(PayloadNotJSONError, TypeError)


async def positional(session: db.AsyncSession, a: int, b: int = 2, *, c: int = 3) -> tuple[int, ...]:
    return a, b, c


async def positional_only(a: int, session: db.AsyncSession, b: int = 2, c: int = 3, /, d: int = 4) -> tuple[int, ...]:
    return a, b, c, d


class TestCalls:
    @pytest.mark.parametrize(
        ("args", "kwargs", "payload"),
        [
            ((1,), {}, {"a": 1}),
            ((1, 5), {"c": 6}, {"a": 1, "b": 5, "c": 6}),
            ((), {"a": 1, "c": 2}, {"a": 1, "c": 2}),
        ],
    )
    def test_arguments_are_given_by_position_or_by_name(
        self, args: tuple[int, ...], kwargs: dict[str, int], payload: dict[str, int]
    ) -> None:
        """Injected parameters take no position; a default is not sent, so that it stays the function's own."""
        raw = Signature(positional).validate(args, kwargs)
        assert from_json(raw) == payload

    @pytest.mark.parametrize(
        ("args", "kwargs", "error"),
        [
            ((), {}, ValidationError),
            ((1, 2, 3), {}, TypeError),
            ((1,), {"a": 2}, TypeError),
            ((1,), {"d": 2}, ValidationError),
            (("x",), {}, ValidationError),
            ((1,), {"session": 2}, ValidationError),
            ((None,), {}, ValidationError),
        ],
    )
    def test_wrong_arguments_are_refused_at_both_ends(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], error: type[Exception]
    ) -> None:
        """Missing, wrong, unknown, double and too many arguments raise where they are enqueued, and in the worker."""
        with pytest.raises(error):
            Signature(positional).validate(args, kwargs)
        with pytest.raises(error):
            Signature(positional).restore(args, kwargs)

    @pytest.mark.parametrize(
        ("args", "kwargs", "called_with"),
        [
            ((1,), {}, (1, 2, 3, 4)),
            ((1, 5), {"d": 6}, (1, 5, 3, 6)),
            ((), {"a": 1, "c": 7}, (1, 2, 7, 4)),
        ],
    )
    async def test_positional_only_parameters_get_their_own_values(
        self, args: tuple[int, ...], kwargs: dict[str, int], called_with: tuple[int, ...]
    ) -> None:
        """An argument that is left out does not shift the arguments after it."""
        signature = Signature(positional_only)
        payload = signature.restore((), from_json(signature.validate(args, kwargs)))
        assert await signature.call(payload, {"session": None}) == called_with

    def test_restore_accepts_the_arguments_that_stock_producers_send(self) -> None:
        """Positional arguments and JSON's own types become the types of the annotations."""
        moment = "2026-01-02T03:04:05Z"
        for args, kwargs in (((moment,), {}), ((), {"value": moment})):
            assert signature_of(datetime).restore(args, kwargs) == {"value": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)}

    def test_restore_accepts_the_values_of_a_pickle(self) -> None:
        """Where pickles are accepted, Python's own values are validated like JSON's."""
        moment = datetime(2026, 1, 2, tzinfo=UTC)
        assert signature_of(datetime).restore((moment,), {}) == {"value": moment}
        assert signature_of(bytes).restore((b"\xff",), {}) == {"value": b"\xff"}
        assert signature_of(tuple[int, int]).restore(((1, 2),), {}) == {"value": (1, 2)}

    def test_constraints_hold_when_enqueueing_and_in_the_worker(self) -> None:
        """Pydantic's `Annotated` types are enforced at both ends."""
        for annotation, wrong in ((Annotated[int, Field(ge=1)], 0), (Json[list[int]], "x")):
            with pytest.raises(ValidationError):
                signature_of(annotation).validate((wrong,), {})
            with pytest.raises(ValidationError):
                signature_of(annotation).restore((wrong,), {})


class TestInjected:
    def test_sessions_contexts_and_resources_are_injected_by_annotation(self) -> None:
        """Sessions of any class and database, the job's context and resources are injected; the rest is payload."""

        async def everything(
            first: db.AsyncSession,
            second: sqlalchemy.ext.asyncio.AsyncSession,
            other: Annotated[db.AsyncSession, REPLICA],
            twin: sqlalchemy.orm.Session,
            context: JobContext,
            http: Annotated[dict[str, Any], Resource("http")],
            number: int,
        ) -> None: ...

        signature = Signature(everything)
        assert signature.injected == {
            "first": InjectedSession(None, sync=False),
            "second": InjectedSession(None, sync=False),
            "other": InjectedSession(REPLICA, sync=False),
            "twin": InjectedSession(None, sync=True),
            "context": InjectedContext(),
            "http": Resource("http"),
        }
        assert list(signature.payload) == ["number"]

    def test_ctx_is_arqs_context_only_as_the_first_parameter(self) -> None:
        """A first parameter `ctx` gets arq's context, whatever its annotation; another of that name is payload."""

        async def first(ctx: dict[str, Any], a: int) -> None: ...
        async def later(a: int, ctx: int) -> None: ...
        async def typed(ctx: JobContext) -> None: ...

        assert Signature(first).injected == {"ctx": InjectedArqContext()}
        assert Signature(later).injected == {}
        assert Signature(typed).injected == {"ctx": InjectedContext()}

    def test_an_annotation_is_found_through_a_type_alias(self) -> None:
        """The alias of Python 3.12's `type Session = Annotated[AsyncSession, replica]` is resolved."""
        alias = TypeAliasType("alias", Annotated[db.AsyncSession, REPLICA])
        assert signature_of(alias).injected == {"value": InjectedSession(REPLICA, sync=False)}

    def test_annotations_of_ctx_and_the_result_may_be_for_type_checkers_alone(self) -> None:
        async def adopted(_ctx: "Ctx", value: int) -> "Ctx": ...  # type: ignore[name-defined]  # noqa: F821
        async def own(ctx: "Ctx", value: int) -> "Ctx": ...  # type: ignore[name-defined]  # noqa: F821

        for signature in (Signature(adopted, is_arq=True), Signature(own)):
            signature.check()
            assert list(signature.injected.values()) == [InjectedArqContext()]
            assert signature.validate((1,), {}) == b'{"value":1}'
            assert signature.restore_result(b'{"x":1}') == {"x": 1}

    @pytest.mark.parametrize("name", ["JobContext", "worker.JobContext", "Annotated[AsyncSession, replica]"])
    def test_ctx_is_not_taken_for_arqs_if_its_annotation_asks_for_something_else(self, name: str) -> None:
        """With `JobContext` under TYPE_CHECKING the task would get a dict."""

        async def own(ctx: Any) -> None: ...

        own.__annotations__["ctx"] = name.replace("Job", "Missing").replace("Async", "Missing")
        assert Signature(own).injected == {"ctx": InjectedArqContext()}
        own.__annotations__["ctx"] = name
        own.__globals__.pop("worker", None)
        with pytest.MonkeyPatch.context() as patch:
            patch.delitem(own.__globals__, "JobContext")
            patch.delitem(own.__globals__, "Annotated")
            with pytest.raises(TaskDefinitionError, match="and ctx needs it: import it outside of TYPE_CHECKING"):
                Signature(own).check()

    def test_a_type_that_is_missing_at_the_first_use_may_come_later(self) -> None:
        async def early(value: "ComesLater") -> None: ...  # type: ignore[name-defined]  # noqa: F821

        signature = Signature(early)
        with pytest.raises(TaskDefinitionError, match="ComesLater"):
            signature.check()
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "ComesLater", int)
            assert signature.validate((1,), {}) == b'{"value":1}'

    def test_annotations_are_read_late_in_a_module_of_any_python(self) -> None:
        """Python 3.14 reads annotations late by itself; before, the future import does."""
        source = """
            from typing import TYPE_CHECKING
            from worker.client.signature import Signature

            if TYPE_CHECKING:
                from somewhere import Ctx

            async def late(ctx: Ctx, first: Below, second: list[Below] | None = None) -> Ctx: ...

            signature = Signature(late)
            class Below(int): ...
        """
        future = "" if sys.version_info >= (3, 14) else "from __future__ import annotations\n"
        module: dict[str, Any] = {"__name__": "late_annotations"}
        exec(compile(future + textwrap.dedent(source), "late", "exec", dont_inherit=True), module)
        signature: Signature = module["signature"]
        assert list(signature.payload) == ["first", "second"]
        with pytest.raises(TaskDefinitionError, match=r"pydantic cannot validate first: .*Below"):
            signature.check()  # it has found the class

    def test_a_default_of_none_lets_none_in(self) -> None:
        async def sloppy(number: int = None, when: Annotated[date, Field(gt=date.min)] = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

        signature = Signature(sloppy)
        assert signature.validate((None,), {"when": None}) == b'{"number":null,"when":null}'
        assert signature.restore((), {"number": None, "when": "2026-01-01"}) == {
            "number": None,
            "when": date(2026, 1, 1),
        }
        with pytest.raises(ValidationError):
            signature.validate(("x",), {})

    def test_a_session_with_a_default_of_none_is_injected(self) -> None:
        async def lazy(session: db.AsyncSession = None) -> None: ...  # type: ignore[assignment]

        assert Signature(lazy).injected == {"session": InjectedSession(None, sync=False)}

    @pytest.mark.parametrize(
        "value", [None, True, 7, 10**30, 1.0, -0.5, "7", "\u00e9", [1, [2.0, "x"]], {"a": {"b": None}, "1": [False]}]
    )
    @pytest.mark.parametrize("default", [inspect.Parameter.empty, None, 5])
    def test_arguments_without_annotations_keep_their_json_values(self, value: Any, default: Any) -> None:
        if default is inspect.Parameter.empty:

            async def bare(value): ...  # type: ignore[no-untyped-def]
        else:

            async def bare(value=default): ...  # type: ignore[no-untyped-def, misc]

        signature = Signature(bare)
        message = Message.decode("id", encode("fn", signature.validate((value,), {}), 1))
        received = signature.restore(message.args, message.kwargs)["value"]
        assert (received, repr(received)) == (value, repr(value))

    def test_annotations_in_quotes_may_name_types_that_are_defined_later(self) -> None:
        """A task may be defined above the types of its parameters."""
        assert signature_of("Defined").restore((), {"value": {"x": 1}}) == {"value": Defined(x=1)}


class Defined(BaseModel):
    x: int


class NotPydantic:
    pass


class TestDefinition:
    def test_a_function_that_cannot_be_a_task_is_refused_with_the_reason(self) -> None:
        """Each mistake is one line that names the function and the parameter."""

        async def many(*numbers: int) -> None: ...
        async def named(**numbers: int) -> None: ...
        async def unknown(value: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - the case under test
        async def broken(value: int) -> None: ...

        broken.__annotations__["value"] = "int["

        async def foreign(good: int, value: NotPydantic) -> None: ...
        async def constrained(value: Annotated[str, Field(gt=datetime)]) -> None: ...

        for fn, reason in (
            (many, r"\*numbers cannot be validated"),
            (named, r"\*\*numbers cannot be validated"),
            (unknown, "annotations name Missing, which its module does not define"),
            (broken, "annotations cannot be read"),
            (foreign, "pydantic cannot validate value: .*NotPydantic"),
            (constrained, "pydantic cannot validate value"),
        ):
            with pytest.raises(TaskDefinitionError, match=reason) as caught:
                Signature(fn).check()
            assert f"{__name__}." in str(caught.value)
            assert fn.__name__ in str(caught.value)
            assert "\n" not in str(caught.value)


class TestResult:
    @pytest.mark.parametrize(
        ("promised", "value"),
        [
            (Order, Order(orderNumber=1, placed=datetime(2026, 1, 1, tzinfo=UTC))),
            (Point, Point(1, datetime(2026, 1, 1, tzinfo=UTC))),
            (Movie, {"title": "x", "poster": b"\xff"}),
            (tuple[int, UUID], (1, UUID(int=5))),
            (bytes, b"\xff"),
            (set[date], {date(2026, 1, 1)}),
            (Colour, Colour.RED),
            (float, float("inf")),
            (None, None),
            (EmailStr | None, None),
        ],
        ids=type_name,
    )
    def test_a_result_is_restored_by_the_return_annotation(self, promised: Any, value: Any) -> None:
        """A result comes back equal and of the annotated type."""
        signature = signature_of(int)
        signature._fn.__annotations__["return"] = promised
        received = signature.restore_result(dump(value))
        assert (received, type(received)) == (value, type(value))

    def test_a_result_without_a_return_annotation_comes_back_as_json(self) -> None:
        """Without a return annotation a tuple is a list."""

        async def fn():  # type: ignore[no-untyped-def]  # the case under test
            ...

        assert Signature(fn).restore_result(dump((1, Path("/a")))) == [1, "/a"]

    def test_a_result_of_a_type_that_pydantic_does_not_know_comes_back_as_json(self) -> None:
        """A return annotation that pydantic does not know is ignored."""
        signature = signature_of(int)
        signature._fn.__annotations__["return"] = NotPydantic
        assert signature.restore_result(b'{"a":1}') == {"a": 1}

    def test_a_result_that_does_not_fit_the_return_annotation_is_an_error(self) -> None:
        """The caller that asks for such a result gets pydantic's error."""
        signature = signature_of(int)
        signature._fn.__annotations__["return"] = int
        with pytest.raises(ValidationError):
            signature.restore_result(b'"x"')
