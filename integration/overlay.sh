#!/usr/bin/env bash
# A container without a volume: the data directory lies on the engine's overlay file system. It commits, is killed, starts again, stops.
set -euo pipefail

id=$(docker run -d --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor:unconfined \
  litefs -data.dir /data -fuse.dir /litefs)
trap 'docker rm -f "$id" >/dev/null' EXIT

fail() {
  echo "| data-on-overlay        | FAIL | $1 |"
  docker logs "$id"
  exit 1
}

sql() { docker exec "$id" sqlite3 /litefs/a.db "$1" | tr '\n' ' '; }

# Waits for the $1th start.
wait_ready() {
  for _ in $(seq 300); do
    [ "$(docker logs "$id" 2>&1 | grep -c 'node is ready')" -ge "$1" ] && return
    sleep 0.2
  done
  fail "not ready"
}

wait_ready 1
docker exec "$id" df -T /data | grep -q overlay || fail "/data is not on overlay"
[ "$(sql 'PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)')" = "wal " ] || fail "cannot write"
docker kill "$id" >/dev/null
docker start "$id" >/dev/null
wait_ready 2
[ "$(sql 'SELECT count(*) FROM t; PRAGMA integrity_check')" = "1 ok " ] || fail "the row is not there after a kill"
docker stop -t 30 "$id" >/dev/null
code=$(docker inspect -f '{{.State.ExitCode}}' "$id")
[ "$code" = 0 ] || fail "ended with $code"
echo "| data-on-overlay        | pass | $(docker logs "$id" 2>&1 | grep -o 'io=.*' | tail -n 1) |"
