#!/usr/bin/env bash
# Debian packages for the scripts of this folder. Needs root.
#
#   packages.sh install PACKAGE …  installs what is missing; the package lists are fetched when they have to be
#   packages.sh mirror             prints the mirror that this machine's apt uses
set -euo pipefail

update() {
  apt-get update -q >&2 || { sleep 5 && apt-get update -q >&2; }
}

find_mirror() {
  # Labels are in the package lists.
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1
}

case "${1:-}" in
  install)
    shift
    missing=()
    for package in "$@"; do
      [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || exit 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "${missing[@]}" >&2 && exit 0
    update
    apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
    ;;
  mirror)
    mirror=$(find_mirror)
    if [ -z "$mirror" ]; then
      update
      mirror=$(find_mirror)
    fi
    [ -n "$mirror" ] || { echo "packages.sh: apt knows no Debian mirror" >&2; exit 1; }
    echo "$mirror"
    ;;
  *) echo "usage: packages.sh install PACKAGE … | mirror" >&2 && exit 2 ;;
esac
