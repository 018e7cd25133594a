#!/usr/bin/env bash
# Builds the images litefs, litefs-demo (and what the scenarios need of it) and litefs-consul.
#
#   images.sh                        with a registry: from the Dockerfile's public base images
#   images.sh --offline              without one: on the base that base.sh makes; litefs is built on this machine
#                                    (LITEFS=/path/to/litefs: this one is taken)
#   images.sh --offline --toolchain  the same, but litefs is built in the image, with this machine's Rust toolchain
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
commit=$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)

# Builds with the engine's own builder, which every engine has; shows what it said when it failed.
build() {
  DOCKER_BUILDKIT=0 docker build -t "$@" >"$work/build.log" 2>&1 || { tail -n 50 "$work/build.log" >&2; exit 1; }
}

# Builds $1 from the lines that follow, in an empty folder.
build_from() {
  mkdir -p "$work/empty"
  printf '%s\n' "${@:2}" >"$work/empty/Dockerfile"
  build "$1" "$work/empty"
}

# A base for the stage that compiles: this machine's toolchain and crates on Debian's compiler.
toolchain_base() {
  mkdir "$work/rust"
  tar -C "$(rustc --print sysroot)" --exclude share/doc -cf "$work/rust/toolchain.tar" .
  tar -C "${CARGO_HOME:-$HOME/.cargo}" -cf "$work/rust/crates.tar" registry
  printf '%s\n' 'FROM litefs-base' \
    'RUN apt-get update && apt-get install -y --no-install-recommends build-essential ca-certificates pkg-config' \
    'ADD toolchain.tar /usr/local/rust' 'ADD crates.tar /usr/local/cargo' \
    'ENV PATH=/usr/local/rust/bin:/usr/bin:/bin CARGO_HOME=/usr/local/cargo CARGO_NET_OFFLINE=true' >"$work/rust/Dockerfile"
  build litefs-rust "$work/rust"
  rm -rf "$work/rust"
}

case "$*" in
  "") build litefs --build-arg "LITEFS_COMMIT=$commit" "$root" ;;
  --offline)
    "$root/integration/base.sh"
    if [ -z "${LITEFS:-}" ]; then
      (cd "$root" && cargo build --release --locked --workspace --bin litefs)
      LITEFS=${CARGO_TARGET_DIR:-$root/target}/release/litefs
    fi
    mkdir "$work/litefs"
    strip --strip-debug -o "$work/litefs/litefs" "$LITEFS"
    build litefs-runtime --target runtime --build-arg BASE_IMAGE=litefs-base -f "$root/Dockerfile" "$work/litefs"
    printf 'FROM litefs-runtime\nCOPY litefs /usr/local/bin/litefs\n' >"$work/litefs/Dockerfile"
    build litefs "$work/litefs"
    ;;
  "--offline --toolchain")
    "$root/integration/base.sh"
    toolchain_base
    build litefs --build-arg BASE_IMAGE=litefs-base --build-arg RUST_IMAGE=litefs-rust \
      --build-arg "LITEFS_COMMIT=$commit" "$root"
    ;;
  *) echo "usage: images.sh [--offline [--toolchain]]" >&2 && exit 2 ;;
esac
build litefs-demo "$root/integration/demo"
# What an upgrade goes to, and what a clock can be faked in.
build_from litefs-demo:next 'FROM litefs-demo' 'LABEL release=next'
build_from litefs-demo:clock 'FROM litefs-demo' \
  'RUN apt-get update && apt-get install -y --no-install-recommends libfaketime && ln -s /usr/lib/*/faketime/libfaketimeMT.so.1 /usr/lib/faketime.so'
"$root/integration/base.sh"
mkdir "$work/consul"
cp "$("$root/tests/consul.sh" | tail -n 1)" "$work/consul/consul"
printf 'FROM litefs-base\nCOPY consul /usr/local/bin/consul\nENTRYPOINT ["consul"]\n' >"$work/consul/Dockerfile"
build litefs-consul "$work/consul"
docker image ls --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep -E '^litefs'
