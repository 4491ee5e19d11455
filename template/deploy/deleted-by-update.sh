#!/bin/sh
# List the files that you edited and that the template's newest release no longer has, which an update
# deletes: deploy/deleted-by-update.sh [COPIER...]
# Before an update it tries it on a copy of the last commit, and fails if there are any such files. After
# one, until you commit it, it looks at what is deleted. What was edited differs from what the template
# had rendered.
set -eu

if [ $# -eq 0 ]; then
    if command -v copier >/dev/null; then set -- copier; else set -- "$(command -v uv || echo .uv/bin/uv)" tool run copier; fi
fi
release_of() {
    sed -n 's/^_commit: *//p' "$1/.copier-answers.yml"
}
project=$(git rev-parse --show-toplevel)
folder=$(git rev-parse --show-prefix)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
git clone --quiet --shared "$project" "$scratch/copy"
copy=$scratch/copy/$folder
release=$(release_of "$copy")

updated=.
if [ "$(release_of .)" = "$release" ]; then
    updated=$copy
    "$@" update --defaults --quiet "$copy"
fi
git -C "$updated" diff HEAD --relative --name-only --diff-filter=D >"$scratch/deleted"
[ -s "$scratch/deleted" ] || exit 0

git -C "$copy" reset --quiet --hard
git -C "$copy" clean --quiet --force -d
"$@" recopy --defaults --overwrite --quiet --vcs-ref="$release" "$copy"
git -C "$copy" diff --relative --name-only >"$scratch/edited"
edited=$(grep -Fx -f "$scratch/deleted" "$scratch/edited") || exit 0

printf 'You edited these files, and the update deletes them:\n%s\n' "$edited" >&2
if [ "$updated" = . ]; then
    echo '`git restore <file>` brings one back.' >&2
else
    echo 'Move what you need of them into files of your own, then run: make template-update FORCE=1' >&2
    exit 1
fi
