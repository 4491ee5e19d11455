"""Rules for revisions: each rehearsed statement is checked for hazards."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from core.migrations.plan import remedies
from core.migrations.plan.blocking import find_blocking
from core.migrations.plan.compatibility import find_breaks, find_dropped_objects
from core.migrations.plan.data_loss import find_data_loss
from core.migrations.plan.recorder import RehearsedRevision
from core.migrations.plan.sizes import Sizes
from core.migrations.plan.verdicts import Reason, Verdict
from core.migrations.source.models import ModelColumns


def judge(
    revision: RehearsedRevision,
    sizes: Sizes,
    acknowledged: Mapping[str, object],
    deployed: ModelColumns | None = None,
) -> list[Reason]:
    """Return the reasons why a revision is unsafe, each once.

    Args:
        revision: the revision, after its rehearsal.
        sizes: sizes of the live tables.
        acknowledged: the revision's own `acknowledged`, from keys of reasons to explanations.
        deployed: the tables and columns that running code uses; None if it may use all.
    """
    reasons = [*_reasons_of_statements(revision, sizes, deployed), *find_dropped_objects(revision)]
    if revision.downgrade_error:
        reasons.append(
            Reason(
                verdict=Verdict.CANNOT_BE_UNDONE,
                table="",
                why=revision.downgrade_error,
                safe_way=remedies.UNDO,
            )
        )
    return [
        replace(
            reason,
            small=reason.verdict.depends_on_size and sizes.is_small(reason.measured),
            acknowledged=_explanation(acknowledged.get(reason.key)),
        )
        for reason in reasons
    ]


def wrong_acknowledgements(reasons: list[Reason], acknowledged: Mapping[str, object]) -> list[str]:
    """Return the keys of `acknowledged` that have no explanation or no reason, as sentences."""
    keys = {reason.key for reason in reasons}
    wrong = [
        f"{key!r} is acknowledged without a reason"
        for key, why in acknowledged.items()
        if not _explanation(why)
    ]
    wrong += [
        f"{key!r} is acknowledged and does not happen" for key in acknowledged if key not in keys
    ]
    return wrong


def _explanation(why: object) -> str:
    return why.strip() if isinstance(why, str) else ""


def _reasons_of_statements(
    revision: RehearsedRevision, sizes: Sizes, deployed: ModelColumns | None
) -> list[Reason]:
    found: dict[tuple[Verdict, str, str], Reason] = {}
    for reason in _all_reasons(revision, sizes, deployed):
        # Long blocking is reported once for each table and verdict, with the first statement that
        # causes it on a large table. Each lost column is reported by itself.
        what = "" if reason.verdict.depends_on_size else reason.why
        key = (reason.verdict, reason.table, what)
        known = found.get(key)
        known_is_small = known is not None and sizes.is_small(known.measured)
        if known is None or (known_is_small and not sizes.is_small(reason.measured)):
            found[key] = reason
    return list(found.values())


def _all_reasons(
    revision: RehearsedRevision, sizes: Sizes, deployed: ModelColumns | None
) -> Iterator[Reason]:
    for statement in revision.statements:
        for reason in (
            *find_blocking(statement, sizes),
            *find_data_loss(statement),
            *find_breaks(statement, revision, deployed),
        ):
            yield replace(reason, statement=statement.sql)
