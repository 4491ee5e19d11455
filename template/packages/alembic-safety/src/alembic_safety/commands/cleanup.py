"""Removal of what killed commands left behind."""

from alembic_safety import cancellation
from alembic_safety.backup.dump import backup_folder
from alembic_safety.backup.files import delete_abandoned_files
from alembic_safety.backup.workspace import delete_abandoned
from alembic_safety.database.leftovers import drop_leftovers
from alembic_safety.database.maintenance import maintenance
from alembic_safety.project import Project


def clean_up(project: Project) -> int:
    """Remove temporary databases and unfinished files that no running command owns."""
    target = project.target
    servers = [target.url] if target.plan_url is None else [target.url, target.plan_url]

    async def drop() -> list[str]:
        dropped: list[str] = []
        for server in servers:
            async with maintenance(server) as connection:
                dropped += await drop_leftovers(connection, target.url.database)
        return dropped

    removed = [f"database {name}" for name in cancellation.run(drop())]
    removed += map(str, [*delete_abandoned(), *delete_abandoned_files(backup_folder(project))])
    for item in removed:
        print(f"Removed: {item}")
    if not removed:
        print("Nothing to clean up.")
    return 0
