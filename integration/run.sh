#!/usr/bin/env bash
# Everything of the multi-node integration on Docker: engine, images, scenarios, table, tear-down. Arguments go to chaos.
#
#   integration/run.sh [--offline] [--or-namespaces] [--short | --only NAME …]
#
# --offline: without a registry (see images.sh; LITEFS=/path/to/litefs is taken instead of building one).
# --or-namespaces: where no engine can be had, or none that lets a container mount, the same scenarios run without containers.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
offline=() namespaces=false
while :; do
  case "${1:-}" in
    --offline) offline=(--offline) ;;
    --or-namespaces) namespaces=true ;;
    *) break ;;
  esac
  shift
done

# An engine, and with --offline the base image: what depends on the machine, not on this project.
machine() { "$here/engine.sh" && { [ "${#offline[@]}" = 0 ] || "$here/base.sh"; }; }

cd "$here"
if ! machine; then
  $namespaces || exit 1
  echo "!!! NO DOCKER ENGINE THAT CAN RUN A NODE ON THIS MACHINE (why: above): the same scenarios run on network namespaces"
  exec python3 -m chaos --backend local "$@"
fi
"$here/images.sh" "${offline[@]}"
"$here/overlay.sh"
exec python3 -m chaos --backend docker "$@"
