#!/bin/sh
# List the files that you edited and that the template's newest release no longer has, which an update
# deletes: deploy/deleted-by-update.sh [COPIER...]
# It fails if there are any, unless FORCE=1 is set. It updates a copy of the last commit, and compares the
# files that this deletes with what the template had rendered.
set -eu

if [ $# -eq 0 ]; then
    if command -v copier >/dev/null; then set -- copier; else set -- "$(command -v uv || echo .uv/bin/uv)" tool run copier; fi
fi
project=$(git rev-parse --show-toplevel)
folder=$(git rev-parse --show-prefix)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git clone --quiet --shared "$project" "$scratch/copy"
copy=$scratch/copy/$folder
release=$(sed -n 's/^_commit: *//p' "$copy/.copier-answers.yml")

"$@" update --defaults --quiet "$copy"
git -C "$copy" diff --relative --name-only --diff-filter=D >"$scratch/deleted"
[ -s "$scratch/deleted" ] || exit 0

git -C "$copy" reset --quiet --hard
git -C "$copy" clean --quiet --force -d
"$@" recopy --defaults --overwrite --quiet --vcs-ref="$release" "$copy"
git -C "$copy" diff --relative --name-only >"$scratch/edited"
edited=$(grep -Fx -f "$scratch/deleted" "$scratch/edited") || exit 0

printf 'You edited these files, and the update deletes them:\n%s\n' "$edited" >&2
case ${FORCE:-} in '' | 0 | no | false) ;; *) exit 0 ;; esac
echo 'Move what you need of them into files of your own, then run: make template-update FORCE=1' >&2
exit 1
