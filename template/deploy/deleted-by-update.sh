#!/bin/sh
# List the files that you edited and that the template's newest release no longer has, and fail if there
# are any, unless FORCE=1: deploy/deleted-by-update.sh [COPIER...]
# Copier deletes such files. This script updates a copy of the last commit and compares the deleted files
# with what the template had rendered.
set -eu

[ $# -gt 0 ] || set -- uvx copier
project=$(git rev-parse --show-toplevel)
folder=$(git rev-parse --show-prefix)
commit=$(sed -n "s/^_commit: *//p" .copier-answers.yml)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git clone --quiet --shared "$project" "$scratch/copy"
copy=$scratch/copy/$folder

"$@" update --defaults --quiet "$copy"
git -C "$copy" diff --relative --name-only --diff-filter=D >"$scratch/deleted"
[ -s "$scratch/deleted" ] || exit 0

git -C "$copy" reset --quiet --hard
git -C "$copy" clean --quiet --force -d
"$@" recopy --defaults --overwrite --quiet --vcs-ref="$commit" "$copy"
git -C "$copy" diff --relative --name-only >"$scratch/edited"
lost=$(grep -Fxf "$scratch/deleted" "$scratch/edited") || exit 0

printf 'You edited these files, and the update deletes them:\n%s\n' "$lost" >&2
case ${FORCE:-} in
'' | 0 | no | false)
    echo 'Move what you need to files of your own, then run `make template-update FORCE=1`.' >&2
    exit 1
    ;;
esac
