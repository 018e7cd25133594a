#!/usr/bin/env bash
# Makes sure that a Docker engine answers and Compose is there; installs and starts Debian's where they are not. Needs root.
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
  local need=()
  answers || command -v dockerd >/dev/null || need+=(docker.io iptables)
  docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || need+=(docker-compose)
  [ "${#need[@]}" = 0 ] || "$(dirname "$0")/packages.sh" install "${need[@]}"
}

if [ "${1:-}" = stop ]; then
  stop
  exit
fi
install
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
