#!/usr/bin/env python3
"""Print the versions of Python and PostgreSQL that the image and CI use.

`service.py postgres`, `service.py python` and `service.py name` print one value alone.
"""

import sys
import tomllib
from pathlib import Path

document = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
service = document["tool"]["service"]
values = {
    "python": service["python-version"],
    "postgres": service["postgres-version"],
    "name": service.get("name", document["project"]["name"]),
}
if len(sys.argv) > 1:
    print(values[sys.argv[1]])
else:
    print(f"python={values['python']}\npostgres={values['postgres']}")
