# uv from PATH, or one of this checkout's own in .uv
ifneq ($(shell command -v uv 2>/dev/null),)
UV := uv
else
UV := .uv/bin/uv
OWN_UV := .uv/bin/uv
endif
PYTHON ?= python3
PYTEST_ARGS ?=
LIBRARY := template/packages/alembic-safety
CHECKSUMS := PYTHONPATH=$(LIBRARY)/src .venv/bin/python -m alembic_safety.checksums

.DEFAULT_GOAL := help
.PHONY: help demo test drill check format bench

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(OWN_UV) ## Render a project into demo/, migrate, serve and ask it
	@$(UV) sync --quiet
	@.venv/bin/python scripts/demo.py

test: $(OWN_UV) ## Run the template's test suite
	@$(UV) sync --quiet
	@.venv/bin/python -m pytest -v -n auto $(PYTEST_ARGS)

drill: $(OWN_UV) ## Run the drills in full, about 10 minutes (DRILLS="kills runners": those alone)
	@$(UV) sync --quiet
	@FULL_DRILLS=1 .venv/bin/python -m pytest -s \
		$(or $(foreach name,$(DRILLS),'tests/drills/test_drills.py::test_the_drill_holds[$(name)]'),tests/drills)

check: $(OWN_UV) ## Check format, lint and types
	@$(UV) sync --quiet
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	@$(CHECKSUMS) $(LIBRARY) || { echo 'run `make format`: it writes SHA256SUMS' >&2; exit 1; }

format: $(OWN_UV) ## Format the code, and mend what can be mended
	@$(UV) sync --quiet
	.venv/bin/ruff check --fix-only
	.venv/bin/ruff format
	@$(CHECKSUMS) --write $(LIBRARY)

bench: $(OWN_UV) ## Measure the rendered project beside floors in the same run (ONLY=requests,tests: parts of it)
	@$(UV) sync --quiet
	@.venv/bin/python -m benchmarks --only="$(ONLY)"

.uv/bin/uv:
	@echo 'uv is not installed; getting it into .uv (https://docs.astral.sh/uv)' >&2
	@$(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv || \
		{ rm -rf .uv; echo 'uv could not be installed; get it from https://docs.astral.sh/uv and try again' >&2; exit 1; }
