"""The rendered API, asked by schemathesis."""

import re
import sys
from pathlib import Path

from tests.support import Project, Service

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)


def test_no_request_is_answered_with_500_or_out_of_the_schema(
    project: Project, tmp_path: Path
) -> None:
    project.make("migrate-up")
    program = Path(sys.executable).with_name("schemathesis")
    with Service(project) as service:
        address = f"http://127.0.0.1:{service.port}/openapi.json"
        options = ("--max-examples=50", f"--checks={','.join(CHECKS)}")
        asked = project.run(str(program), "run", address, *options, cwd=tmp_path, expect=None)
        asked_for = service.ask("/metrics", Accept="application/openmetrics-text; version=junk")
    assert asked.returncode == 0, asked.stdout
    assert "Tested: 7" in asked.stdout
    cases = re.search(r"(\d+) generated", asked.stdout)
    assert cases is not None
    assert int(cases[1]) > 100
    assert asked_for[0] == 200
    assert "Traceback" not in service.log
