#!/usr/bin/env bash
# Install pg_dump and pg_restore of a major version, where those here are older: for backups on a
# machine of CI. The project's wheel has them, too, but knows no TLS.
set -euo pipefail
wanted=${1:?the major version of PostgreSQL}

for program in "/usr/lib/postgresql/$wanted/bin/pg_dump" "$(command -v pg_dump || true)"; do
    if [ -x "$program" ] && [ "$("$program" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')" -ge "$wanted" ]; then
        echo "$("$program" --version) is installed"
        exit 0
    fi
done
if ! command -v apt-get >/dev/null; then
    echo "pg_dump $wanted is not installed; https://www.postgresql.org/download has it" >&2
    exit 1
fi
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
export DEBIAN_FRONTEND=noninteractive
as_root apt-get update -qq
as_root apt-get install -y -qq --no-install-recommends ca-certificates postgresql-common >/dev/null
as_root /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y >/dev/null
as_root apt-get install -y -qq --no-install-recommends "postgresql-client-$wanted" >/dev/null
"/usr/lib/postgresql/$wanted/bin/pg_dump" --version
