"""Database URLs, and the form that each driver needs."""

import pytest
from sqlalchemy import make_url

import db
from db.engine.url import host_of, parse_url, same_database, sync_twin, with_host


@pytest.mark.parametrize(
    ("written", "driver"),
    [
        ("postgresql://host/name", "postgresql+asyncpg"),
        ("postgres://host/name", "postgresql+asyncpg"),
        ("postgresql+psycopg://host/name", "postgresql+psycopg"),
        ("sqlite:///app.db", "sqlite+aiosqlite"),
        ("sqlite+pysqlite:///app.db", "sqlite+pysqlite"),
    ],
)
def test_url_without_a_driver_gets_an_async_one(written: str, driver: str) -> None:
    """A URL without a driver means asyncpg or aiosqlite; one with a driver means that."""
    assert parse_url(written).drivername == driver


def test_url_may_be_an_object_or_its_parts() -> None:
    """SQLAlchemy's `URL`, and a dict with the arguments of `URL.create`, mean the same as the text."""
    written = "postgresql://app:hunter2@db-1:5433/shop?sslmode=require"
    parts = {
        "drivername": "postgresql",
        "username": "app",
        "password": "hunter2",
        "host": "db-1",
        "port": 5433,
        "database": "shop",
        "query": {"sslmode": "require"},
    }
    assert parse_url(written) == parse_url(make_url(written)) == parse_url(parts)
    assert db.Database(parts).host == "db-1"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"drivername": "postgresql", "user": "app", "password": "hunter2"},
            "no part 'user': its parts are drivername",
        ),
        ({"host": "db-1", "password": "hunter2"}, "needs a drivername"),
        ({"drivername": "postgresql", "password": "hunter2", "port": "five"}, "port is not a number"),
        ({"drivername": "postgresql", "password": "hunter2", "host": 7}, "host must be a string"),
        ({"drivername": "nonsense", "password": "hunter2"}, "not a database URL"),
    ],
)
def test_parts_that_are_no_url_are_refused_by_name(parts: dict[str, object], message: str) -> None:
    """In one line that shows no password."""
    with pytest.raises(db.DatabaseURLError, match=message) as refused:
        db.Database(parts)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "nonsense",
        "postgresql",
        "http://host/name",
        "postgresql+nodriver://host/name",
        "postgresql://host:port/name",
    ],
)
def test_malformed_url_is_refused_with_an_example(wrong: str) -> None:
    """A malformed URL is refused in one line with an example, and without anything that may be a password."""
    with pytest.raises(
        db.DatabaseURLError, match=r"write e\.g\. postgresql\+asyncpg://user:password@host/name"
    ) as refused:
        parse_url(wrong)
    assert "\n" not in str(refused.value)


def test_password_is_not_shown() -> None:
    """Not even in the error about a URL that cannot be parsed."""
    with pytest.raises(db.DatabaseURLError) as refused:
        parse_url("postgresql://app:hunter2@host:port/name")
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_missing_driver_is_named() -> None:
    """A driver that cannot be imported is named."""
    with pytest.raises(db.DatabaseURLError, match=r"mysql.* cannot be imported"):
        parse_url("mysql+mysqldb://host/name")


@pytest.mark.parametrize(
    "memory",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+aiosqlite://",
        "sqlite+pysqlite:///:memory:",
        "sqlite:///file::memory:?cache=shared&uri=true",
        "sqlite:///file:shared?mode=memory&cache=shared&uri=true",
        "sqlite:///file:/shared?vfs=memdb&uri=true",
    ],
)
def test_in_memory_sqlite_is_refused(memory: str) -> None:
    """G: a SQLite database in memory, which all sessions would share, is refused in all spellings."""
    with pytest.raises(db.DatabaseURLError, match=r"use a file, e\.g\. sqlite\+aiosqlite:///\./app\.db"):
        db.Database(memory)


def test_sqlite_file_opened_by_uri_is_accepted() -> None:
    """A SQLite file that is opened read-write by a URI is not in memory."""
    parse_url("sqlite:///file:app.db?mode=rw&uri=true")


def test_ssl_becomes_libpqs_sslmode() -> None:
    """`ssl`, which asyncpg and others say, is libpq's `sslmode`; the twin has the same parameters."""
    url = parse_url("postgresql://host/name?ssl=true&application_name=app&statement_cache_size=0")
    assert dict(url.query) == {"sslmode": "require", "application_name": "app", "statement_cache_size": "0"}
    twin = sync_twin(url)
    assert twin is not None
    assert dict(twin.query) == {"sslmode": "require", "application_name": "app"}
    assert same_database(url, twin)


@pytest.mark.parametrize(
    ("hosts", "query"),
    [
        ("db-1,db-2", {"host": "db-1,db-2", "port": "5432,5432"}),
        ("db-1:5433,db-2", {"host": "db-1,db-2", "port": "5433,5432"}),
        ("[::1]:5433,[::2]", {"host": "::1,::2", "port": "5433,5432"}),
    ],
)
@pytest.mark.parametrize("driver", ["postgresql", "postgresql+psycopg"])
def test_several_hosts_are_kept_in_order(hosts: str, query: dict[str, str], driver: str) -> None:
    """Several hosts, as libpq writes them, are tried one after the other."""
    url = parse_url(f"{driver}://app:p%40ss,word@{hosts}/name?target_session_attrs=read-write")
    assert dict(url.query) == {"target_session_attrs": "read-write", **query}
    assert (url.username, url.password, url.database) == ("app", "p@ss,word", "name")


@pytest.mark.parametrize("hosts", ["db-1,", "db-1,db-2:port", ",,"])
def test_malformed_list_of_hosts_is_refused(hosts: str) -> None:
    """A host without a name, or with a port that is no number, is no URL."""
    with pytest.raises(db.DatabaseURLError, match="not a database URL"):
        parse_url(f"postgresql://{hosts}/name")


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("db-2", ("db-2", 5433)),
        ("db-2:6000", ("db-2", 6000)),
        ("[::1]:6000", ("::1", 6000)),
        ("[::1]", ("::1", 5433)),
        ("::1", ("::1", 5433)),
    ],
)
def test_another_host_keeps_the_port_unless_it_names_one(host: str, where: tuple[str, int]) -> None:
    """A host takes the URL's port unless it has its own; IPv6 addresses are hosts, too."""
    url = with_host(make_url("postgresql+asyncpg://app@db-1:5433/name"), host)
    assert (url.host, url.port) == where
    assert (url.username, url.database) == ("app", "name")


def test_host_may_be_a_folder_of_sockets() -> None:
    """A host may be a folder of sockets, in libpq's way, and be exchanged for a name."""
    sockets = with_host(make_url("postgresql+asyncpg://app@db-1/name"), "/run/postgresql")
    assert (sockets.host, dict(sockets.query)) == (None, {"host": "/run/postgresql", "port": "5432"})
    assert host_of(sockets) == "/run/postgresql"
    named = with_host(sockets, "db-2")
    assert (named.host, dict(named.query)) == ("db-2", {})
    assert host_of(named) == "db-2"


def test_unknown_backend_has_no_sync_twin() -> None:
    """Where no synchronous driver is known there is no twin, and nothing is the same database."""
    assert sync_twin(make_url("mysql+aiomysql://host/name")) is None
    assert not same_database(make_url("postgresql://a/x"), make_url("postgresql://b/x"))
    assert not same_database(None, None)
    assert not same_database(make_url("mysql+aiomysql://host/name"), make_url("oracle://host/name"))
