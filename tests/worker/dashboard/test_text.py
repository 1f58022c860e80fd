"""What pages make of values from outside: escaped, redacted, and with control characters shown."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.admin.job_line import Count
from worker.dashboard import mask_secrets, text
from worker.dashboard.plots import area, bar, lines, spark
from worker.dashboard.redaction import MASK


class TestRedaction:
    def test_values_with_telling_names_are_masked_at_any_depth(self) -> None:
        value = {
            "kwargs": {
                "user": "ann",
                "Password": "x",
                "auth": {"apiKey": 1, "accessToken": None},
                "to": ["a", {"SECRET_2": 5}],
            },
            "args": [{"Authorization": "Bearer x"}, "plain"],
        }
        assert mask_secrets("send", "arguments", value) == {
            "kwargs": {
                "user": "ann",
                "Password": MASK,
                "auth": {"apiKey": MASK, "accessToken": MASK},
                "to": ["a", {"SECRET_2": MASK}],
            },
            "args": [{"Authorization": MASK}, "plain"],
        }

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("login failed: password=hunter2, user=ann", f"login failed: password={MASK}, user=ann"),
            ('headers={"Authorization": "Bearer sk_live"}', f'headers={{"Authorization": {MASK}}}'),
            ("Authorization: Basic abc==", f"Authorization: Basic {MASK}"),
            ("cannot reach redis://:s3cret@db-1/0", f"cannot reach redis://:{MASK}@db-1/0"),
            ("postgresql://app:s3cret@db-1/app?x=1", f"postgresql://app:{MASK}@db-1/app?x=1"),
            ("API_KEY='x y' and more", f"API_KEY={MASK} and more"),
            ("no secret here: a token", "no secret here: a token"),
            ("order 7 has no lines", "order 7 has no lines"),
        ],
    )
    def test_secrets_in_text_are_masked(self, before: str, after: str) -> None:
        assert mask_secrets("send", "error", before) == after

    @pytest.mark.parametrize("piece", ["token", "token=", "://a:", "a" * 50, "password ", '"secret": "'])
    def test_a_megabyte_takes_no_time(self, piece: str) -> None:
        began = time.monotonic()
        mask_secrets("send", "traceback", piece * (1_000_000 // len(piece)))
        assert time.monotonic() - began < 3


class TestText:
    def test_json_is_escaped_and_its_control_characters_shown(self) -> None:
        shown = str(text.colored_json({"<b>": "</script>\x1b[31m\x00\u202e", "n": 1.5, "t": True}))
        assert "<b>" not in shown
        assert "</script>" not in shown
        assert "&lt;b&gt;" in shown
        assert shown.isprintable() or "\n" in shown
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert '<span class="n">1.5</span>' in shown
        assert '<span class="w">true</span>' in shown

    def test_long_json_is_cut(self) -> None:
        assert len(str(text.colored_json("x" * 2_000_000))) < 30_000
        assert text.is_long("x" * 2_000_000)

    @pytest.mark.parametrize(
        ("seconds", "shown"),
        [
            (None, "—"),
            (0, "0 ms"),
            (0.0124, "12 ms"),
            (3.44, "3.4 s"),
            (59.9, "60 s"),
            (312, "5 m 12 s"),
            (7500, "2 h 5 m"),
            (273_600, "3 d 4 h"),
        ],
    )
    def test_durations(self, seconds: float | None, shown: str) -> None:
        assert text.duration(seconds) == shown

    def test_numbers(self) -> None:
        assert text.number(1_234_567) == "1,234,567"
        assert text.number(Count.up_to(100_000)) == "100,000"
        assert text.number(Count.up_to(100_001)) == "100,000+"
        assert [text.size(n) for n in (512, 1_400, 12_000_000)] == ["512 B", "1.4 kB", "12 MB"]
        assert [text.rate(n) for n in (1234.5, 12.34, 0.0123)] == ["1,234", "12.3", "0.012"]

    def test_times(self) -> None:
        now = datetime.now(UTC)
        assert text.ago(now - timedelta(seconds=125)) == "2 m ago"
        assert text.ago(now + timedelta(hours=3, seconds=5)) == "in 3 h"
        assert text.when(None) == '<span class="none">—</span>'
        assert "1970-01-01 00:00:01 UTC" in text.when(1_000)
        assert text.moment(10**18) == ""

    @pytest.mark.parametrize(
        "value", [None, 7, "x", {"args": [1, "a"], "kwargs": {"b": {"c": 2}}}, {"kwargs": None}, {}]
    )
    def test_any_arguments_are_one_line(self, value: Any) -> None:
        assert "\n" not in text.arguments(value)
        assert text.arguments({"args": [1, "a"], "kwargs": {"b": "x\ny\x1b"}}) == '1, "a", b="x\\ny\\u001b"'


class TestPlots:
    def test_labels_are_escaped_and_nothing_is_inline(self) -> None:
        plots = [
            spark([0, 3], "<b>"),
            bar(3, 0),
            area([1.0, 2.0], [0.0, 1.0], ["<i>", "b"], "<b>"),
            lines([[None, 1.0, None, 2.0, 3.0], [None] * 5], ["<i>"] * 5, "<b>"),
            bar(5, 3),
        ]
        for plot in map(str, plots):
            assert "<b>" not in plot
            assert "<i>" not in plot
            assert "style=" not in plot
            assert plot.startswith("<svg")
