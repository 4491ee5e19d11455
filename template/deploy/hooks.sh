#!/usr/bin/env bash
# How this project is deployed: what make and CI can't know. It is yours, and no update touches it.
# Fill each hook in (the lines in comments are examples) and delete its line `not_filled_in`.
# A hook that fails, fails what called it. docs/deploying.md says when each is called.
set -euo pipefail

not_filled_in() {
    echo "deploy/hooks.sh: $1 is not filled in: write there $2, and delete the line not_filled_in" >&2
    exit 1
}

# Keep the backup FILE, whose name says what it is of, in a place that outlives this machine. It
# holds production's data: let only those read it who may read the database.
store_backup() {
    local file=$1
    not_filled_in store_backup "how the file \$file is kept outside of this machine"
    # aws s3 cp --no-progress "$file" s3://shop-backups/
    # scp -q "$file" backup@files.example.com:shop/
}

# Put the backup NAME, which store_backup kept, into the folder FOLDER.
fetch_backup() {
    local name=$1 folder=$2
    not_filled_in fetch_backup "how the file \$name is put into the folder \$folder"
    # aws s3 cp --no-progress "s3://shop-backups/$name" "$folder/"
    # scp -q "backup@files.example.com:shop/$name" "$folder/"
}

# Let IMAGE, with its tag, run in place of what runs now, and return when it does: it is called when
# the database is at the image's revision, and may be called with an older image to go back.
rollout() {
    local image=$1
    not_filled_in rollout "how the image \$image is rolled out"
    # kubectl set image deployment/shop api="$image" && kubectl rollout status deployment/shop
    # ssh deploy@shop.example.com "cd shop && IMAGE='$image' docker compose up --detach --wait api"
}

case "${1:-}" in
store-backup) store_backup "${2:?the backup}" ;;
fetch-backup) fetch_backup "${2:?the name of the backup}" "${3:?the folder}" ;;
rollout) rollout "${2:?the image}" ;;
*) echo "usage: deploy/hooks.sh store-backup FILE | fetch-backup NAME FOLDER | rollout IMAGE" >&2 && exit 2 ;;
esac
