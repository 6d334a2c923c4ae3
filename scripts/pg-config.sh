#!/usr/bin/env bash
# Prints the pg_config to build for: $PG_CONFIG, or the newest supported server that is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

config=${PG_CONFIG:-}
if [ -z "$config" ]; then
  config=$(ls -d /usr/lib/postgresql/1[5-8]/bin/pg_config 2>/dev/null | sort -V | tail -n 1)
  [ -n "$config" ] || config=$(command -v pg_config || true)
  [ -n "$config" ] || die "no pg_config found: run \`make deps\`, or say which one with PG_CONFIG=/path/to/pg_config"
fi
version=$("$config" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
case $version in
  15 | 16 | 17 | 18) echo "$config" ;;
  *) die "$config is of PostgreSQL $version; pg_duplex builds for 15 to 18" ;;
esac
