#!/usr/bin/env bash
# Everything of the multi-node integration on Docker: engine, images, scenarios, table, tear-down. Arguments go to chaos.
#
#   integration/run.sh --offline [--short | --only NAME …]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
offline=()
if [ "${1:-}" = --offline ]; then
  offline=(--offline)
  shift
fi
"$here/engine.sh"
"$here/images.sh" "${offline[@]}"
cd "$here"
exec python3 -m chaos --backend docker "$@"
