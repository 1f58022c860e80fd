"""The format of producers that have not moved: pickle, or serializers of the project's own."""

import json
import pickle
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from worker import foreign_codec
from worker.engine.pickles import dump_result
from worker.errors import ConfigError, PayloadError
from worker.message import Message, deserialize_trusting, encode, serialize, with_row

JOB = {"t": None, "f": "send", "a": [1], "k": {"x": 2}, "et": 3}
OURS = encode("send", b'{"x":2}', 3)


def pack(data: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(data).encode())


def unpack(raw: bytes) -> dict[str, Any]:
    return json.loads(zlib.decompress(raw))  # type: ignore[no-any-return]


@pytest.fixture
def packed() -> Iterator[None]:
    """The project has given `pack` and `unpack`."""
    foreign_codec.use_serializers(pack, unpack)
    yield
    foreign_codec._given = None


@pytest.mark.usefixtures("packed")
class TestOwnSerializers:
    def test_a_job_in_the_projects_format_is_read_and_gets_its_row(self) -> None:
        """Whether pickles are accepted or not."""
        message = Message.decode("a", pack(JOB))
        assert (message.task, message.args, message.kwargs, message.is_pickled) == ("send", (1,), {"x": 2}, True)
        assert unpack(with_row(pack(JOB), enqueued_at=5)) == {**JOB, "et": 5, "ledger": True}
        assert deserialize_trusting(pack(JOB)) == JOB

    @pytest.mark.parametrize("raw", [OURS, serialize(JOB)])
    def test_a_job_in_json_is_still_one(self, raw: bytes) -> None:
        """Also one that arq's client wrote with Tandem's codec."""
        assert not Message.decode("a", raw).is_pickled

    @pytest.mark.parametrize("raw", [b"garbage", pickle.dumps(JOB), pack([1])])  # type: ignore[arg-type]
    def test_what_is_in_no_known_format_is_refused(self, raw: bytes) -> None:
        """As it was."""
        with pytest.raises(PayloadError):
            Message.decode("a", raw)

    def test_a_json_format_of_the_projects_own_is_its_format(self) -> None:
        """As its values may not be JSON's. Tandem's own jobs are told by their beginning."""
        foreign_codec._given = (lambda data: json.dumps(data).encode(), lambda raw: {**json.loads(raw), "a": ["read"]})
        assert Message.decode("a", json.dumps(JOB).encode()).args == ("read",)
        assert Message.decode("a", OURS).args == ()

    def test_an_exception_that_the_format_cannot_express_is_its_name_and_text(self) -> None:
        """A producer raises arq's `SerializationError` with it. Stock arq would keep no result."""
        assert unpack(dump_result({"s": False, "r": ValueError("no such thing")}))["r"] == "ValueError: no such thing"
        assert unpack(dump_result({"s": True, "r": [1]}))["r"] == [1]

    def test_other_serializers_in_the_same_process_are_refused(self) -> None:
        """A job does not say which format it has."""
        foreign_codec.use_serializers(pack, unpack)
        with pytest.raises(ConfigError, match="start two processes"):
            foreign_codec.use_serializers(repr, unpack)  # type: ignore[arg-type]


def test_without_serializers_a_pickle_is_loaded_only_if_it_is_accepted() -> None:
    """By default it is not."""
    assert foreign_codec.load(pickle.dumps(JOB), accept_pickle=False) is None
    assert foreign_codec.load(pickle.dumps(JOB), accept_pickle=True) == JOB
    assert foreign_codec.load(OURS, accept_pickle=True) is None
