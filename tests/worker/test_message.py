"""The wire format: jobs and results as JSON, and payloads that are refused."""

import json
import pickle
from typing import Any

import pytest
from arq.jobs import deserialize_job, deserialize_result, serialize_job, serialize_result
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import JobFailed, PayloadError
from worker.message import Envelope, Message, deserialize, deserialize_trusting, dump, encode, serialize, with_row

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TEXT = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


class TestMessage:
    @given(
        st.text(st.characters(codec="utf-8"), min_size=1), st.dictionaries(st.text("abc"), JSON), st.integers(0, 2**45)
    )
    def test_a_job_comes_back_as_it_was_written(self, task: str, kwargs: dict[str, Any], enqueued_at: int) -> None:
        """Name, arguments and enqueue time survive the wire, for any JSON arguments."""
        message = Message.decode("id", encode(task, dump(kwargs), enqueued_at))
        assert message == Message("id", task, (), kwargs, enqueued_at)

    def test_a_job_without_an_origin_has_no_byte_of_it(self) -> None:
        """What most jobs are on the wire does not change."""
        assert encode("send", b'{"to":"ann"}', 5) == b'{"f":"send","t":null,"a":[],"k":{"to":"ann"},"et":5}'

    @pytest.mark.parametrize(
        "origin", [{"parent": "j1"}, {"traceparent": TRACE}, {"parent": "j 1", "traceparent": TRACE}]
    )
    def test_a_job_comes_back_with_its_origin(self, origin: dict[str, Any]) -> None:
        """Its enqueue time stays at its end, where the scripts of Redis read it; stock arq ignores the origin."""
        raw = Envelope("send", 5, in_ledger=True, **origin).around(b'{"to":"ann"}')
        assert Message.decode("id", raw) == Message("id", "send", (), {"to": "ann"}, 5, in_ledger=True, **origin)
        assert raw.endswith(b',"et":5,"ledger":true}')
        stock = deserialize_job(raw, deserializer=deserialize)
        assert (stock.function, stock.kwargs, stock.enqueue_time.timestamp()) == ("send", {"to": "ann"}, 0.005)

    @pytest.mark.parametrize(
        "hostile",
        [
            {"parent": 7, "traceparent": ["x"]},
            {"parent": "a\nb", "traceparent": TRACE + "\n"},
            {"parent": "\0", "traceparent": "00-x"},
            {"parent": {}, "traceparent": TRACE.upper()},
        ],
    )
    def test_an_origin_that_is_none_is_left_out(self, hostile: dict[str, Any]) -> None:
        """The job runs all the same: its origin is only shown."""
        raw = json.dumps({"t": None, "f": "send", **hostile, "a": [], "k": {}, "et": 5}).encode()
        assert Message.decode("id", raw) == Message("id", "send", (), {}, 5)

    def test_arq_reads_our_jobs_and_we_read_arqs(self) -> None:
        """With Tandem's codec, stock arq and Tandem write the same job."""
        ours = deserialize_job(encode("census", b'{"path":"/a"}', 1_700_000_000_000), deserializer=deserialize)
        theirs = serialize_job("census", (1,), {"path": "/a"}, None, 1_700_000_000_000, serializer=serialize)
        assert (ours.function, ours.kwargs) == ("census", {"path": "/a"})
        assert Message.decode("id", theirs) == Message("id", "census", (1,), {"path": "/a"}, 1_700_000_000_000)

    @given(st.dictionaries(st.text("abc"), JSON))
    def test_marking_a_payload_as_in_the_ledger_changes_nothing_else(self, kwargs: dict[str, Any]) -> None:
        """Everything else stays byte by byte; marking it twice is the same as once."""
        raw = encode("send", dump(kwargs), 1_000)
        told = with_row(raw)
        assert Message.decode("id", told) == Message("id", "send", (), kwargs, 1_000, in_ledger=True)
        assert told == encode("send", dump(kwargs), 1_000, in_ledger=True)
        assert with_row(told) == told
        assert Message.decode("id", with_row(raw.replace(b',"et"', b',"ledger":false,"et"', 1) + b" \n")).in_ledger

    @pytest.mark.parametrize(
        ("raw", "reason"),
        [
            (b"", "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[" * 300 + b"]" * 300, "recursion limit"),
            (b"[1]", "expected an object, got list"),
            (b"{}", "it needs f"),
            (b'{"f":["x"],"a":[],"k":{},"et":1}', "it needs f"),
            (b'{"f":"x","a":{},"k":{},"et":1}', "it needs f"),
            (b'{"f":"x","a":[],"k":[],"et":1}', "it needs f"),
            (b'{"f":"x","a":[],"k":{}}', "et, its enqueue time"),
            (b'{"f":"x","a":[],"k":{},"et":true}', "et, its enqueue time"),
            (b'{"f":"x","a":[],"k":{},"et":1e300}', "et, its enqueue time"),
            (b'{"f":"x","a":[],"k":{},"et":999999999999999999}', "et, its enqueue time"),
            (b'{"f":"x","a":[],"k":{},"et":-1}', "et, its enqueue time"),
            (b'{"f":"x","a":[],"k":{},"et":1,"t":"1"}', "t, its first try"),
        ],
    )
    def test_a_payload_that_is_no_job_is_refused_with_the_reason(self, raw: bytes, reason: str) -> None:
        """An invalid payload raises `PayloadError` with the reason, in Tandem and in arq."""
        with pytest.raises(PayloadError, match=reason):
            Message.decode("id", raw)
        with pytest.raises(PayloadError, match=reason):
            deserialize(raw)


class TestPickle:
    def test_a_pickle_is_refused_and_not_loaded(self) -> None:
        """A pickle is refused with advice, and code in it is not run."""
        loaded.clear()
        with pytest.raises(PayloadError, match="WORKER_ACCEPT_PICKLE"):
            Message.decode("id", pickle.dumps(Bomb()))
        with pytest.raises(PayloadError, match="WORKER_ACCEPT_PICKLE"):
            deserialize(pickle.dumps(Bomb()))
        assert loaded == []

    def test_a_pickle_is_loaded_where_pickles_are_accepted(self) -> None:
        """A queue that moves from arq can accept its pickled jobs."""
        raw = serialize_job("census", (1,), {"path": "/a"}, None, 5)
        expected = Message("id", "census", (1,), {"path": "/a"}, 5, is_pickled=True)
        assert Message.decode("id", raw, accept_pickle=True) == expected
        assert deserialize_trusting(raw)["f"] == "census"

    def test_a_broken_pickle_is_refused_also_where_pickles_are_accepted(self) -> None:
        """Where pickles are accepted, one that cannot be loaded or is no job is a `PayloadError` all the same."""
        for raw in (b"\x80garbage", pickle.dumps([1]), pickle.dumps({"f": "x", "a": (), "k": {1: 2}, "et": 1})):
            with pytest.raises(PayloadError) as caught:
                Message.decode("id", raw, accept_pickle=True)
            assert "WORKER_ACCEPT_PICKLE" not in str(caught.value)


class TestResult:
    def test_arq_reads_an_error_of_a_job_as_an_exception(self) -> None:
        """A stock client gets the exception that ended the job, built in or not."""
        for error in (ValueError("no"), JobFailed("app.Oops", "no", "Traceback ...")):
            raw = serialize_result("f", (), {}, 1, 2, False, error, 3, 4, "ref", "q", "id", serializer=serialize)
            assert raw is not None
            result = deserialize_result(raw, deserializer=deserialize).result
            assert (type(result), result.args) == (type(error), error.args)

    def test_arqs_text_in_place_of_an_unserialisable_result_stays_a_text(self) -> None:
        """The text that arq writes in place of a result that it cannot serialise is passed on."""
        raw = json.dumps({"f": "x", "a": [], "k": {}, "et": 1, "s": False, "r": "unable to serialize result"}).encode()
        assert deserialize(raw)["r"] == "unable to serialize result"


class TestDump:
    @pytest.mark.parametrize(
        "value",
        [
            pytest.param(lambda: 0, id="a function"),
            pytest.param(object(), id="an object"),
            pytest.param("\ud800", id="a lone surrogate"),
            pytest.param({"\udcff": 1}, id="a lone surrogate as a key"),
            pytest.param((number for number in range(3)), id="a generator"),
            pytest.param(map(str, range(3)), id="an iterator"),
            pytest.param(10**5000, id="a number that no parser reads"),
        ],
    )
    def test_dump_refuses_values_that_json_cannot_express_or_parsers_cannot_read(self, value: Any) -> None:
        """A value that would not come back raises a `TypeError` that names its type."""
        with pytest.raises(TypeError, match=f"JSON cannot express this {type(value).__name__}"):
            dump(value)

    @pytest.mark.parametrize("depth", [199, 240, 100_000])
    def test_dump_refuses_values_that_are_nested_too_deep(self, depth: int) -> None:
        """A value that would be nested too deep to be read inside a result is not written."""
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        with pytest.raises(TypeError, match="JSON cannot express this list"):
            dump(value)

    @given(JSON)
    def test_a_dumped_value_can_be_read_as_part_of_a_result(self, value: Any) -> None:
        """A value that was written is in the result that arq's client reads."""
        raw = b'{"f":"x","a":[],"k":{},"et":1,"s":true,"r":%b}' % dump(value)
        assert deserialize(raw)["r"] == value


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return loaded.append, (1,)


loaded: list[int] = []
