#!/bin/sh
# Prints the path of a Consul 1.8 executable for the tests, after fetching it into a cache directory if need be.
#
# It comes from Debian's own package (bullseye was the last release with it), unpacked beside the system: nothing is
# installed. The mirror is the one this machine's apt uses. Idempotent; safe to run several times at once.
#   CONSUL        use this executable instead
#   LITEFS_CACHE  where to keep it (default: ~/.cache/litefs-tests)
set -eu

if [ -n "${CONSUL:-}" ]; then
    echo "$CONSUL"
    exit 0
fi
cache=${LITEFS_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/litefs-tests}
consul=$cache/consul/usr/bin/consul
mkdir -p "$cache"
exec 9>"$cache/consul.lock"
flock 9
if [ -x "$consul" ]; then
    echo "$consul"
    exit 0
fi

work=$(mktemp -d "$cache/consul-fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/root"
log=$work/log

# The system's own sources first (some releases have the package), then bullseye of the same mirror.
system_mirror() {
    cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -v '^[[:space:]]*#' |
        grep -oE 'https?://[^] ]+/debian/?( |$)' | head -n 1 | tr -d ' '
}
private_apt() {
    apt-get -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o Debug::NoLocking=1 -o APT::Sandbox::User=root "$@" >>"$log" 2>&1
}
download() {
    if (cd "$work" && apt-get -o APT::Sandbox::User=root download consul >>"$log" 2>&1); then
        return 0
    fi
    mirror=$(system_mirror)
    [ -n "$mirror" ] || return 1
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" >"$work/sources.list"
    private_apt update && (cd "$work" && private_apt download consul)
}

if ! download; then
    cat "$log" >&2
    echo "consul.sh: cannot fetch Consul; install it and set CONSUL=/path/to/consul" >&2
    exit 1
fi
dpkg -x "$work"/consul_*.deb "$work/root"
rm -rf "$cache/consul"
mv "$work/root" "$cache/consul"
echo "$consul"
