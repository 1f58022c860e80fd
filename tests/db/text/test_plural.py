import pytest

from db.text.plural import plural


@pytest.mark.parametrize(("number", "text"), [(0, "0 jobs"), (1, "1 job"), (2, "2 jobs"), (1234, "1,234 jobs")])
def test_a_noun_fits_its_number(number: int, text: str) -> None:
    """One job is not "1 jobs", and a large number has separators."""
    assert plural(number, "job") == text


def test_a_noun_may_have_a_plural_of_its_own() -> None:
    """A noun whose plural has no mere s is given both forms."""
    assert [plural(1, "try", "tries"), plural(2, "try", "tries")] == ["1 try", "2 tries"]
