"""What was to happen, held against what did.

1. A job exists if its transaction was committed, of which the transaction's marker row is the proof.
2. One that was enqueued directly exists unless its producer was told nothing, or Redis was wiped while it held the job.
3. What exists has happened once; what does not exist has not happened; and nothing else has.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tests.chaos.facts import Facts
from tests.chaos.journal import Entry, Fate, Outcome, Wish
from tests.chaos.tasks import child_key


@dataclass(frozen=True)
class Offence:
    """One job that is not as it should be."""

    key: str
    what: str
    effects: int


@dataclass(frozen=True)
class Finding:
    """One claim, for how many jobs it was looked at, and those for which it does not hold."""

    claim: str
    jobs: int
    offences: list[Offence] = field(default_factory=list)


def judge(facts: Facts, *, once: bool) -> list[Finding]:
    """All claims. Where `once` is false, the ledger is not asked what it knows of what was done."""
    return _Court(facts, once=once).findings()


class _Court:
    def __init__(self, facts: Facts, *, once: bool) -> None:
        self._facts = facts
        self._once = once
        self._wishes = [(entry, wish) for entry in facts.entries for wish in entry.wishes]
        self._committed = frozenset(key for keys in facts.markers.values() for key in keys)

    def findings(self) -> list[Finding]:
        committed = [wish for _, wish in self._wishes if wish.key in self._committed]
        direct = [(entry, wish) for entry, wish in self._wishes if wish.fate is Fate.DIRECT]
        kept = [(entry, wish) for entry, wish in direct if self._was_kept(entry, wish)]
        parents = [wish for wish in self._wishes_of("fan_out") if self._effects(wish.key)]
        childless = [wish for wish in self._wishes_of("fan_out") if not self._effects(wish.key)]
        return [
            self._each("committed: one effect", filter(_leaves_effect, committed), self._happened_once),
            self._each("committed, and fails: no effect, a failed row", filter(_fails, committed), self._failed),
            self._each(
                "committed, without effects: has run",
                filter(_only_thinks, committed),
                self._was_thought,
            ),
            self._each("rolled back whole: nothing", self._meant(Fate.ROLLED_BACK), self._never_happened),
            self._each("rolled back to a savepoint: nothing", self._meant(Fate.SAVEPOINT), self._never_happened),
            self._each("not committed, or id taken: nothing", self._uncommitted(), self._never_happened),
            self._each("direct: at most one effect", (wish for _, wish in direct), self._happened_at_most_once),
            self._each("direct, not wiped: done", (wish for _, wish in kept), self._happened),
            Finding("children of a fan-out: one effect", *self._children(parents)),
            Finding("children that were rolled back: nothing", *self._lost_children(parents, childless)),
            Finding("effects that nobody asked for: none", *self._strangers()),
            Finding("producers were told the truth", *self._lies()),
        ]

    def _each(self, claim: str, wishes: Iterable[Wish], check: Callable[[Wish], str | None]) -> Finding:
        checked = [(wish, check(wish)) for wish in wishes]
        offences = [
            Offence(wish.key, f"{wish.task}: {wrong}", self._effects(wish.key)) for wish, wrong in checked if wrong
        ]
        return Finding(claim, len(checked), offences)

    def _meant(self, fate: Fate) -> Iterator[Wish]:
        return (wish for _, wish in self._wishes if wish.fate is fate)

    def _uncommitted(self) -> Iterator[Wish]:
        """Those that were meant to be committed."""
        return (wish for wish in self._meant(Fate.COMMITTED) if wish.key not in self._committed)

    def _wishes_of(self, task: str) -> Iterator[Wish]:
        return (wish for _, wish in self._wishes if wish.task == task)

    def _was_kept(self, entry: Entry, wish: Wish) -> bool:
        """Whether a direct job was surely queued, and surely not wiped."""
        job_id = (entry.job_ids or {}).get(wish.key)
        if job_id is None or entry.ended is None:
            return False
        return not any(wipe.may_have_lost(job_id, entry.begun, entry.ended) for wipe in self._facts.wipes)

    def _effects(self, key: str) -> int:
        return len(self._facts.effects.get(key, ()))

    def _states(self, key: str) -> list[str]:
        return [row.state for row in self._facts.rows.get(key, ())]

    def _happened_once(self, wish: Wish) -> str | None:
        if (effects := self._effects(wish.key)) != 1:
            return f"{effects} effects"
        return self._not_settled_as(wish, "done") if self._once else None

    def _failed(self, wish: Wish) -> str | None:
        if effects := self._effects(wish.key):
            return f"{effects} effects"
        if wrong := self._not_settled_as(wish, "failed"):
            return wrong
        (row,) = self._facts.rows[wish.key]
        return None if "is to fail" in (row.error or "") else f"its row says that it failed of {row.error!r}"

    def _was_thought(self, wish: Wish) -> str | None:
        if not self._facts.thoughts[wish.key]:
            return "it never ran"
        return self._not_settled_as(wish, "done")

    def _not_settled_as(self, wish: Wish, state: str) -> str | None:
        states = self._states(wish.key)
        return None if states == [state] else f"its rows are {states or 'missing'}, where one that is {state} should be"

    def _never_happened(self, wish: Wish) -> str | None:
        if effects := self._effects(wish.key):
            return f"{effects} effects"
        if self._facts.thoughts[wish.key]:
            return "it ran"
        states = self._states(wish.key)
        return f"it has rows: {states}" if states else None

    def _happened_at_most_once(self, wish: Wish) -> str | None:
        most = 1 if _leaves_effect(wish) else 0
        effects = self._effects(wish.key)
        return f"{effects} effects" if effects > most else None

    def _happened(self, wish: Wish) -> str | None:
        if _fails(wish):
            return None
        done = self._facts.thoughts[wish.key] if _only_thinks(wish) else self._effects(wish.key)
        return None if done else "it is lost"

    def _children(self, parents: list[Wish]) -> tuple[int, list[Offence]]:
        """One for each effect of its parent."""
        born = [(child_key(wish.key, number), wish) for wish in parents for number in range(wish.arguments["children"])]
        return len(born), [
            Offence(key, f"{self._effects(key)} effects of a child", self._effects(key))
            for key, parent in born
            if self._effects(key) != self._effects(parent.key)
        ]

    def _lost_children(self, parents: list[Wish], childless: list[Wish]) -> tuple[int, list[Offence]]:
        """Those of the savepoint that is rolled back, and all of parents that were rolled back."""
        lost = [child_key(wish.key, wish.arguments["children"]) for wish in parents]
        lost += [child_key(wish.key, number) for wish in childless for number in range(wish.arguments["children"] + 1)]
        return len(lost), [
            Offence(key, "a child that was rolled back", self._effects(key))
            for key in lost
            if self._effects(key) or self._states(key)
        ]

    def _strangers(self) -> tuple[int, list[Offence]]:
        known = {wish.key for _, wish in self._wishes}
        strangers = [key for key in self._facts.effects if key.partition("/")[0] not in known]
        return len(self._facts.effects), [Offence(key, "nobody asked for it", self._effects(key)) for key in strangers]

    def _lies(self) -> tuple[int, list[Offence]]:
        """Transactions of which a producer was told what is not so."""
        told = [
            entry for entry in self._facts.entries if not _is_direct(entry) and entry.outcome is not Outcome.UNKNOWN
        ]
        return len(told), [
            Offence(entry.act, f"was told: {entry.outcome.value}", 0)
            for entry in told
            if (entry.outcome is Outcome.DONE) != (entry.act in self._facts.markers)
        ]


def _fails(wish: Wish) -> bool:
    return wish.task == "fail" or bool(wish.arguments.get("fails"))


def _only_thinks(wish: Wish) -> bool:
    return wish.task in ("think", "only_read")


def _leaves_effect(wish: Wish) -> bool:
    return not _fails(wish) and not _only_thinks(wish)


def _is_direct(entry: Entry) -> bool:
    return any(wish.fate is Fate.DIRECT for wish in entry.wishes)
