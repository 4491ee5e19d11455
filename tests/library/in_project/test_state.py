"""The state of the schema, of revisions that branch and join."""

from types import SimpleNamespace
from typing import Any

import pytest

from alembic_safety.state import Revisions, SchemaState, State


def make_revisions(parents: dict[str, tuple[str, ...]], *heads: str) -> Revisions:
    """Return revisions whose parents are given, oldest first."""
    scripts = [
        SimpleNamespace(
            revision=name,
            doc=f"message of {name}",
            longdoc="Create Date: 2026-01-02 03:04:05",
            _all_down_revisions=down,
        )
        for name, down in parents.items()
    ]
    script: Any = SimpleNamespace(
        get_heads=lambda: list(heads), walk_revisions=lambda: scripts[::-1]
    )
    return Revisions(script)


LINE = make_revisions({"a": (), "b": ("a",), "c": ("b",)}, "c")
BRANCHES = make_revisions({"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}, "d")
TWO_HEADS = make_revisions({"a": (), "b": ("a",), "c": ("a",)}, "b", "c")


@pytest.mark.parametrize(
    ("revisions", "current", "state", "pending"),
    [
        (LINE, ["c"], State.AT_HEAD, ""),
        (LINE, ["a"], State.BEHIND, "bc"),
        (LINE, [], State.BEHIND, "abc"),
        (LINE, ["z"], State.AHEAD, ""),
        (BRANCHES, ["b"], State.BEHIND, "cd"),
        (BRANCHES, ["b", "c"], State.BEHIND, "d"),
        (BRANCHES, ["d"], State.AT_HEAD, ""),
        (TWO_HEADS, ["b"], State.BEHIND, "c"),
        (TWO_HEADS, ["b", "c"], State.AT_HEAD, ""),
    ],
)
def test_what_is_pending(
    revisions: Revisions, current: list[str], state: State, pending: str
) -> None:
    found = revisions.state(current)
    assert found.state is state
    assert "".join(revision.id for revision in found.pending) == pending


def test_each_state_says_what_it_is() -> None:
    assert LINE.state(["b"]).describe() == "the database is behind by 1 revision"
    assert LINE.state([]).describe() == "the database is behind by 3 revisions"
    assert "was never migrated" in LINE.state([], versioned=False).describe()
    assert "at revision z, which this code does not have" in LINE.state(["z"]).describe()
    assert LINE.state(["c"]).describe() == "the database is at head"
    assert SchemaState.unreachable("gone").describe() == "the database is unreachable: gone"


def test_a_revision_has_a_message_and_a_date() -> None:
    assert (LINE["b"].message, LINE["b"].date) == ("message of b", "2026-01-02 03:04")
