#!/usr/bin/env bash
# Builds the images litefs, litefs-demo and litefs-consul.
#
#   images.sh            with a registry: from the Dockerfile's public base images
#   images.sh --offline  without one: the base is made with debootstrap, the binary is built here
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
release=$(. /etc/os-release && echo "$VERSION_CODENAME")

# The base image: a minimal Debian, made from packages; the machine's own apt settings reach the mirror.
base() {
  docker image inspect litefs-base >/dev/null 2>&1 && return
  command -v debootstrap >/dev/null || apt-get install -y -q --no-install-recommends debootstrap >/dev/null
  debootstrap --variant=minbase --include=ca-certificates,fuse3,sqlite3,python3-minimal,python3 \
    "$release" "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 ||
    { tail -n 30 "$work/debootstrap.log" >&2; exit 1; }
  rm -rf "$work/base/var/cache/apt" "$work/base/var/lib/apt/lists"
  tar -C "$work/base" -c . | docker import - litefs-base >/dev/null
}

# Builds an image from a folder with the engine's own builder, which every engine has.
build() { DOCKER_BUILDKIT=0 docker build -q -t "$@" >/dev/null; }

if [ "${1:-}" = --offline ]; then
  base
  (cd "$root" && cargo build --release --workspace --bin litefs)
  target=$(cd "$root" && cargo metadata --no-deps --format-version 1 | python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
  mkdir "$work/litefs" "$work/consul"
  cp "$target/release/litefs" "$work/litefs/litefs"
  printf 'FROM litefs-base\nCOPY litefs /usr/local/bin/litefs\nENTRYPOINT ["litefs", "mount"]\n' >"$work/litefs/Dockerfile"
  build litefs "$work/litefs"
  cp "$root"/integration/demo/{app.py,litefs.yml} "$work/litefs/"
  printf '%s\n' 'FROM litefs' 'COPY app.py /app/app.py' 'COPY litefs.yml /etc/litefs.yml' \
    'ENV DATABASE=/litefs/guestbook.db PORT=8081 RETENTION=10m' >"$work/litefs/Dockerfile"
  build litefs-demo "$work/litefs"
else
  build litefs --build-arg "LITEFS_COMMIT=$commit" "$root"
  build litefs-demo "$root/integration/demo"
  mkdir "$work/consul"
fi
base
cp "$("$root/tests/consul.sh" | tail -n 1)" "$work/consul/consul"
printf 'FROM litefs-base\nCOPY consul /usr/local/bin/consul\nENTRYPOINT ["consul"]\n' >"$work/consul/Dockerfile"
build litefs-consul "$work/consul"
docker image ls --format '{{.Repository}} {{.Size}}' | grep -E '^litefs'
