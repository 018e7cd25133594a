#!/usr/bin/env bash
# Makes the image litefs-base where there is no registry: a minimal Debian from packages, with the mirror that this machine uses.
# Ends with 1 when that fails, or when a container cannot mount or reach the mirror on this machine.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

make() {
  local mirror release
  mirror=$("$here/packages.sh" mirror)
  release=$(. /etc/os-release && echo "$VERSION_CODENAME")
  "$here/packages.sh" install debootstrap
  debootstrap --variant=minbase "$release" "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 ||
    { tail -n 30 "$work/debootstrap.log" >&2; return 1; }
  rm -rf "$work"/base/var/cache/apt/* "$work"/base/var/lib/apt/lists/*
  echo 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache ""; Acquire::Retries "3";' >"$work/base/etc/apt/apt.conf.d/image"
  tar -C "$work/base" -c . | docker import - litefs-base >/dev/null
}

docker image inspect litefs-base >/dev/null 2>&1 && exit 0
make
docker run --rm --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor:unconfined litefs-base sh -ec \
  'test -c /dev/fuse; mount -t tmpfs tmpfs /mnt; apt-get update -q' >"$work/probe.log" 2>&1 ||
  { tail -n 20 "$work/probe.log" >&2; docker image rm -f litefs-base >/dev/null; exit 1; }
