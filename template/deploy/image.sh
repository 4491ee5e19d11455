#!/bin/sh
# Build the project's image or push it: deploy/image.sh build|push
# The environment has IMAGE and TAG, which name the image, and ENGINE, the program that builds. By
# default, the name is the project's, and the tag is the commit, or `dev` with uncommitted changes.
set -eu

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

engine=${ENGINE:-docker}
[ -f Dockerfile ] || fail 'There is no Dockerfile: this project was made without container files'
command -v "$engine" >/dev/null || fail "$engine is not installed: select another program by ENGINE=podman or ENGINE=buildah"

commit='' tag=dev
if git ls-files --error-unmatch Dockerfile >/dev/null 2>&1 && [ -z "$(git status --porcelain -- \
    Dockerfile .dockerignore pyproject.toml uv.lock src migrations packages)" ]; then
    commit=$(git rev-parse HEAD)
    tag=$(git rev-parse --short HEAD)
fi
name=${IMAGE:-$("${PYTHON:-python3}" deploy/service.py name)}
image=$(printf %s "$name" | tr '[:upper:]' '[:lower:]'):${TAG:-$tag}
case $image in *[!A-Za-z0-9._/:-]* | [!a-z0-9]*) fail "IMAGE and TAG: $image is not the name of an image" ;; esac

case ${1:-} in
build)
    # In podman's and buildah's own format, an image has no HEALTHCHECK.
    export BUILDAH_FORMAT="${BUILDAH_FORMAT:-docker}"
    "$engine" build --tag="$image" --build-arg=CODE_VERSION="$commit" \
        ${PYTHON_IMAGE:+"--build-arg=PYTHON_IMAGE=$PYTHON_IMAGE"} ${EXTRAS:+"--build-arg=EXTRAS=$EXTRAS"} .
    echo "built $image"
    ;;
push) "$engine" push "$image" ;;
*) fail 'usage: deploy/image.sh build|push' ;;
esac
