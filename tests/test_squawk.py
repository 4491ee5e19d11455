"""squawk, for the comparison, finds what it is made for; and its rules of style are left out."""

import pytest
from tests.squawk import squawk_finds


def test_rules_of_safety_are_returned_without_those_of_style() -> None:
    sql = "BEGIN; CREATE INDEX ix ON users (name); CREATE TABLE new (id int); COMMIT;"
    assert squawk_finds(sql, 18) == {"require-concurrent-index-creation"}


def test_what_is_safe_has_none() -> None:
    sql = "ALTER TABLE users ADD CONSTRAINT ck CHECK (age > 0) NOT VALID;"
    assert squawk_finds(sql, 15) == set()


def test_a_rule_that_has_to_be_asked_for_is() -> None:
    sql = "ALTER TABLE users ENABLE ROW LEVEL SECURITY;"
    assert squawk_finds(sql, 18) == {"ban-alter-row-level-security"}


def test_an_error_of_squawk_is_no_finding() -> None:
    with pytest.raises(RuntimeError, match="pg-version"):
        squawk_finds("SELECT 1;", 10**12)
