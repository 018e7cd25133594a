#!/usr/bin/env bash
# Every check of the project: formatting, lints, fuzz targets, build, docs, unit, integration and end-to-end tests, faults on a cluster with and
# without Docker, SQLite's own tests.
#
# Wants Debian (or a machine that has the packages below), root (FUSE mounts, passthrough) and Rust stable.
# Each step has a time cap; output goes to target/test-logs/, and what a failed step printed last is shown.
# Ends with one plain line and exit code 0 (all passed) or 1.
set -u
cd "$(dirname "$0")" || exit 1
exec </dev/null

TOTAL_CAP_S=3300
started=$SECONDS
logs=target/test-logs
failed=()
mkdir -p "$logs"

export CARGO_TERM_COLOR=never CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}" RUST_BACKTRACE=1
export HOME="${HOME:-/root}"
PATH="$PATH:$HOME/.cargo/bin:/usr/local/cargo/bin:/usr/sbin:/sbin"

say() { printf '%s\n' "$*"; }

finish() {
  local took=$((SECONDS - started))
  if [ ${#failed[@]} -eq 0 ]; then
    say "test.sh: all passed in $took s"
    exit 0
  fi
  say "test.sh: FAILED after $took s: ${failed[*]}"
  exit 1
}

# step NAME CAP_S COMMAND...: runs it within its cap and what is left of the total. 0 when it passed.
step() {
  local name=$1 cap=$2 left rc begun=$SECONDS log
  shift 2
  log=$logs/${name//[^A-Za-z0-9_-]/-}.log
  left=$((TOTAL_CAP_S - (SECONDS - started)))
  [ "$left" -lt "$cap" ] && cap=$left
  if [ "$cap" -le 0 ]; then
    say "--- $name: not started, the total of $TOTAL_CAP_S s is used up"
    failed+=("$name")
    return 1
  fi
  say "==> $name"
  timeout --kill-after=15 "$cap" "$@" >"$log" 2>&1
  rc=$?
  if [ $rc -eq 0 ]; then
    # Results of tests, rows of the scenarios' table, and what could not be done on this machine.
    grep -E '^test result: |^\||^!!!' "$log" | grep -v ' 0 passed; 0 failed; 0 ignored' | sed 's/^/    /'
    say "    ok in $((SECONDS - begun)) s"
    return 0
  fi
  failed+=("$name")
  say "--- $name FAILED (exit $rc) after $((SECONDS - begun)) s: $*"
  [ $rc -eq 124 ] && say "--- it ran into its cap of $cap s"
  grep -nE '^test .* \.\.\. FAILED|has been running for over|^error(\[|:)' "$log" | head -40
  say "--- last lines of $log:"
  tail -n 150 "$log"
  say "--- end of $log"
  return 1
}

install_packages() {
  local missing=() pair
  for pair in sqlite3:sqlite3 fusermount3:fuse3 curl:curl python3:python3 cc:build-essential c++:build-essential git:git \
    ps:procps pkg-config:pkg-config ip:iproute2 nghttp:nghttp2-client; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  /usr/bin/python3 -c 'import websockets' || missing+=(python3-websockets)
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "missing: ${missing[*]} (install them, or run as root on Debian)"
    return 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  local try
  for try in 1 2; do
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" && return 0
    say "apt-get failed (try $try)"
    sleep 5
  done
  return 1
}

check_machine() {
  command -v cargo >/dev/null || { say "cargo is missing: install Rust stable (https://rustup.rs)"; return 1; }
  cargo fmt --version || { say "rustfmt is missing: rustup component add rustfmt"; return 1; }
  cargo clippy --version || { say "clippy is missing: rustup component add clippy"; return 1; }
  [ -e /dev/fuse ] || modprobe fuse || true
  [ -e /dev/fuse ] || mknod /dev/fuse c 10 229 || true
  [ -r /dev/fuse ] || { say "/dev/fuse is missing: the tests mount real file systems"; return 1; }
  uname -a
  cargo --version
  rustc --version
}

export -f install_packages check_machine say
step "packages" 600 bash -c install_packages || finish
step "machine" 60 bash -c check_machine || finish
step "fmt" 60 cargo fmt --all --check
step "clippy" 900 cargo clippy --workspace --all-targets -- -D warnings
# Not of the workspace; with its target folder, as most of the dependencies are checked already.
step "fuzz targets" 600 cargo check --manifest-path fuzz/Cargo.toml --bins --target-dir "${CARGO_TARGET_DIR:-target}"
RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" step "doc" 600 cargo doc --workspace --no-deps --document-private-items
step "build" 900 cargo build --workspace || finish
step "build tests" 1200 cargo test --workspace --no-run || finish

# A test that stands longer than this is stuck: the step's cap ends it.
step "unit tests" 900 cargo test --workspace --lib --bins --no-fail-fast
step "doc tests" 300 cargo test --workspace --doc --no-fail-fast
for main in */tests/*/main.rs; do
  [ -e "$main" ] || continue
  name=$(basename "$(dirname "$main")")
  step "integration $name" 900 cargo test --workspace --test "$name" --no-fail-fast -- --test-threads=2
done
export LITEFS_BIN="$(realpath "${CARGO_TARGET_DIR:-target}")/debug/litefs"
step "end to end" 1500 cargo test --workspace --test e2e --no-fail-fast -- --test-threads=2
step "demo" 120 python3 -m unittest discover -s integration/demo
export LITEFS="$LITEFS_BIN"
step "proxy" 400 env PYTHONPATH=integration /usr/bin/python3 -m proxy --pairs 400 --stops 2
step "chaos" 600 env PYTHONPATH=integration python3 -m chaos --short
step "soak" 600 integration/soak --minutes 3 --seed 1
step "sqlite tests" 1200 integration/sqlite_tests/run.py --litefs "$LITEFS" short
# Last: an engine changes the machine's firewall.
step "chaos on Docker" 1200 integration/run.sh --offline --or-namespaces --short
integration/engine.sh stop
finish
