# Targets of a deployment: docs/deploying.md. The Makefile includes this file, and CI calls its targets.
.PHONY: image image-push rollout deploy-check store-backup fetch-backup postgres-client versions \
	migrate-verify migrate-touched

image: ## Build the image (IMAGE=name, TAG=, ENGINE=podman or buildah instead of docker)
	@sh deploy/image.sh build
image-push: ## Push the image that `make image` built (with the same IMAGE=registry.example/name and TAG=)
	@sh deploy/image.sh push
rollout: $(OWN_UV) ## Run IMAGE with the tag TAG, by deploy/hooks.sh, and record it
	@[ -n "$$IMAGE" ] || { echo 'IMAGE is missing: make rollout IMAGE=registry.example.com/shop TAG=1a2b3c4' >&2; exit 1; }
	@case "$$IMAGE$$TAG" in *[!A-Za-z0-9._/:@-]*|-*) \
		echo "IMAGE and TAG: $$IMAGE:$$TAG is not the name of an image" >&2; exit 1;; esac
	@bash deploy/hooks.sh rollout "$$IMAGE$${TAG:+:$$TAG}"
	@# The next plan looks up what the running code uses.
	@[ -z "$$TAG" ] || $(MIGRATIONS) rolled-out -- "$$TAG" || echo 'The rollout is not in the migration history' >&2

deploy-check: ## Fail until the hooks in deploy/hooks.sh are filled in
	@[ -r deploy/hooks.sh ] || { echo 'deploy/hooks.sh is missing: docs/deploying.md describes it' >&2; exit 1; }
	@! grep -nE '^[[:space:]]*not_filled_in ' deploy/hooks.sh >&2 || \
		{ echo 'deploy/hooks.sh: fill these hooks in first, or delete their lines; nothing was changed' >&2; exit 1; }
store-backup: $(OWN_UV) ## Keep BACKUP=<file, or else the latest> outside this machine, by deploy/hooks.sh
	@file=$$($(MIGRATIONS) backup-path -- "$${BACKUP:-latest}") && bash deploy/hooks.sh store-backup "$$file"
fetch-backup: $(OWN_UV) ## Get BACKUP=<name> back into backups/, by deploy/hooks.sh
	@case "$$BACKUP" in ''|*/*|.*|-*) \
		echo 'BACKUP is the name of a stored backup: make fetch-backup BACKUP=<name>.dump' >&2; exit 1;; esac
	@folder=$$($(MIGRATIONS) backup-path) && mkdir -p -m 700 "$$folder" && \
		bash deploy/hooks.sh fetch-backup "$$BACKUP" "$$folder" && $(MIGRATIONS) backup-path -- "$$BACKUP"

postgres-client: ## Install pg_dump of the version in pyproject.toml, unless it is there (Debian, Ubuntu)
	@bash deploy/postgres-client.sh "$$("$${PYTHON:-python3}" deploy/service.py postgres)"
versions: ## Print the versions of Python and PostgreSQL that the image and CI use
	@"$${PYTHON:-python3}" deploy/service.py

migrate-verify: $(OWN_UV) ## Fail unless the database is at head
	@$(MIGRATIONS) verify
migrate-touched: ## Print whether this branch changes revisions or models, compared with BASE
	@git rev-parse --quiet --verify "$$BASE^{commit}" >/dev/null || \
		{ echo "BASE=$$BASE: there is no such branch or commit here; fetch it first" >&2; exit 1; }
	@git diff --quiet --relative --no-renames "$$BASE...HEAD" -- \
		migrations ':(glob)src/**/models.py' ':(glob)src/**/models/**'; \
	case $$? in 0) echo touched=false;; 1) echo touched=true;; *) exit 1;; esac
