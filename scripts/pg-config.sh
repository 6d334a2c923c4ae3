#!/usr/bin/env bash
# Prints the pg_config to build for: $PG_CONFIG, or the newest supported server that is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

config=${PG_CONFIG:-}
if [ -z "$config" ]; then
  for major in 15 16 17 18; do
    if [ -x "/usr/lib/postgresql/$major/bin/pg_config" ]; then config=/usr/lib/postgresql/$major/bin/pg_config; fi
  done
  [ -n "$config" ] || config=$(command -v pg_config || true)
  [ -n "$config" ] || die "no pg_config found: run \`make deps\`, or say which one with PG_CONFIG=/path/to/pg_config"
fi
version=$("$config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
case $version in
  15 | 16 | 17 | 18) echo "$config" ;;
  *) die "$config is of PostgreSQL $version; pg_duplex builds for 15 to 18" ;;
esac
