#!/usr/bin/env bash
# Makes sure that a Docker engine answers; installs and starts Debian's where none does. Needs root.
#
#   engine.sh       exit code 0: one answers
#   engine.sh stop  ends the one that was started here, if any
set -euo pipefail

pid_file=/run/litefs-dockerd.pid
log=${TMPDIR:-/tmp}/litefs-dockerd.log

answers() { docker info >/dev/null 2>&1; }

stop() {
  local pid
  pid=$(cat "$pid_file" 2>/dev/null) || return 0
  rm -f "$pid_file"
  [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ] || return 0
  kill "$pid"
  for _ in $(seq 100); do
    [ -d "/proc/$pid" ] || return 0
    sleep 0.1
  done
}

install() {
  local need=() try
  command -v dockerd >/dev/null || need+=(docker.io)
  docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || need+=(docker-compose)
  [ "${#need[@]}" -gt 0 ] || return 0
  for try in 1 2; do
    apt-get update -q >/dev/null &&
      DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${need[@]}" iptables >/dev/null && return
    echo "apt-get failed (try $try)" >&2
    sleep 3
  done
  return 1
}

if [ "${1:-}" = stop ]; then
  stop
  exit
fi
if ! command -v docker-compose >/dev/null && ! docker compose version >/dev/null 2>&1 || ! answers; then
  install
fi
answers && exit 0
rm -f /var/run/docker.pid
setsid dockerd >"$log" 2>&1 </dev/null &
echo $! >"$pid_file"
for _ in $(seq 100); do
  answers && exit 0
  [ -d "/proc/$(cat "$pid_file")" ] || break
  sleep 0.3
done
echo "dockerd does not answer; its log ($log):" >&2
tail -n 30 "$log" >&2
exit 1
