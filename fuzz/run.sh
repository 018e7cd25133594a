#!/usr/bin/env bash
# Runs one fuzz target for some seconds, on a stable compiler; cargo-fuzz is not needed. Needs a C++ compiler.
#
#   fuzz/run.sh TARGET SECONDS [further libFuzzer arguments]
set -euo pipefail

cd "$(dirname "$0")"
target=${1:?target: $(ls targets | sed 's/\.rs$//' | grep -v memory | tr '\n' ' ')}
seconds=${2:?seconds}
shift 2
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
 -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1"
RUSTFLAGS=$(tr '\n' ' ' <<<"$RUSTFLAGS")
# An explicit --target keeps the flags away from build scripts and macros.
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --target "$host" --bin "$target"
corpus=corpus/$target
mkdir -p "$corpus" artifacts
case $target in # the original's files are good seeds
  ltx) find ../tests/golden -name '*.ltx' -exec cp -n {} "$corpus/" \; ;;
  wire) find ../tests/golden \( -name 'stream-*.bin' -o -name 'posmap-*.bin' \) -exec cp -n {} "$corpus/" \; ;;
  header) find ../tests/golden -name database -exec sh -c 'head -c 100 "$1" >"$2/$(cksum <"$1" | cut -d" " -f1)"' _ {} "$corpus" \; ;;
  wal) find ../tests/golden -name wal -exec cp -n {} "$corpus/" \; ;;
  token)
    printf '%s' '000000000000002a&jobs.db=000000000000002b' >"$corpus/header"
    printf '%s' 'a=b; __txid=000000000000002a; __txids="jobs.db=000000000000002b&x%20y=0000000000000001"' >"$corpus/cookies"
    ;;
  fly_replay) printf '%s' 'instance=3d8d9014b32d89;region=fra;app=x;state=k=v;elsewhere=true' >"$corpus/all" ;;
  answer)
    printf '\006HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 204 x\r\n\r\n' >"$corpus/length"
    printf '\010HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n' >"$corpus/chunked"
    printf '\001HTTP/1.0 103 x\r\nConnection: keep-alive\r\n\r\nHTTP/1.0 200 Fine\r\n\r\nrest' >"$corpus/close"
    ;;
  wal_index) find ../tests/golden -name shm -exec cp -n {} "$corpus/" \; ;;
esac
exec "${CARGO_TARGET_DIR:-target}/$host/release/$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 \
  -artifact_prefix=artifacts/ "$@" "$corpus"
