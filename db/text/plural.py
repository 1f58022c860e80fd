"""A number with its noun: ``1 job``, ``1,234 jobs``."""


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """`number` with thousands separators, and the noun in the form that fits it.

    Args:
        noun: the form for one.
        nouns: the form for any other number (default: `noun` with an s).
    """
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
