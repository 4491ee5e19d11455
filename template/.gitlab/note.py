"""Puts a file into a note of the merge request: one note, made once and then brought up to date.

Run as `python3 .gitlab/note.py FILE`, by the job `plan`. The token of a job may not write notes:
this needs a project access token in PLAN_TOKEN, with the role Reporter and the scope api.
"""

import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

MARKER = "<!-- migrate-plan -->"
"""Stands at the beginning of the note, where nobody sees it."""
TIMEOUT = 30  # seconds


def main(path: str) -> int:
    """Write the note; return the exit code."""
    if not Path(path).stat().st_size:
        return 0  # no plan was made, and what makes it has said why
    if not os.environ.get("PLAN_TOKEN"):
        print(f"PLAN_TOKEN is not set: no note is written, and the plan is in the artifact {path}.")
        return 0
    project, request = os.environ["CI_PROJECT_ID"], os.environ["CI_MERGE_REQUEST_IID"]
    notes = f"projects/{project}/merge_requests/{request}/notes"
    # A line that begins with / would be a quick action, such as /merge.
    plan = re.sub(
        r"^(?=[ \t]*/)", "\u200b", Path(path).read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    body = f"{MARKER}\n\n{plan}"
    try:
        own = _find(notes, author=_ask("GET", "user")["id"])
        if own is None:
            _ask("POST", notes, body=body)
        else:
            _ask("PUT", f"{notes}/{own}", body=body)
    except urllib.error.HTTPError as error:
        print(
            f"GitLab refused the note: {error.code} {error.reason}; PLAN_TOKEN needs the role "
            f"Reporter and the scope api. The plan is in the artifact {path}.",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(
            f"GitLab did not answer at {os.environ['CI_API_V4_URL']}: {error}. "
            f"The plan is in the artifact {path}.",
            file=sys.stderr,
        )
        return 1
    print(f"The note of the merge request is {'made' if own is None else 'up to date'}.")
    return 0


def _find(notes: str, *, author: int) -> int | None:
    page = 1
    while found := _ask("GET", f"{notes}?sort=asc&per_page=100&page={page}"):
        for note in found:
            # Anybody can write the marker.
            if note["author"]["id"] == author and note["body"].startswith(MARKER):
                return int(note["id"])
        page += 1
    return None


def _ask(method: str, path: str, **values: str) -> Any:
    request = urllib.request.Request(
        f"{os.environ['CI_API_V4_URL']}/{path}",
        method=method,
        data=json.dumps(values).encode() if values else None,
        headers={
            "PRIVATE-TOKEN": os.environ["PLAN_TOKEN"],
            "Content-Type": "application/json",
        },
    )
    # GitLab sets it where the server's certificate is of a private authority.
    trusted = ssl.create_default_context(cafile=os.environ.get("CI_SERVER_TLS_CA_FILE"))
    with urllib.request.urlopen(request, timeout=TIMEOUT, context=trusted) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
