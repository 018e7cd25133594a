#!/usr/bin/env bash
# Makes sure that a Docker engine answers; installs and starts Debian's where none does. Needs root.
set -euo pipefail

answers() { docker info >/dev/null 2>&1; }

answers && exit 0
need=()
command -v dockerd >/dev/null || need+=(docker.io)
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || need+=(docker-compose)
if [ "${#need[@]}" -gt 0 ]; then
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${need[@]}" iptables >/dev/null
fi
log=${TMPDIR:-/tmp}/litefs-dockerd.log
# A client newer than the engine (another vendor's package) must speak the engine's version.
setsid dockerd >"$log" 2>&1 </dev/null &
for _ in $(seq 100); do
  answers && exit 0
  sleep 0.3
done
echo "dockerd does not answer; its log ($log):" >&2
tail -n 30 "$log" >&2
exit 1
