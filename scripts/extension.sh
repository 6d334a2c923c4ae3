#!/usr/bin/env bash
# Builds the extension for one PostgreSQL, and with the argument "install" puts it there. With "test" it only runs the unit
# tests of what in it needs no server.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

PG_CONFIG=$(scripts/pg-config.sh)
major=$("$PG_CONFIG" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
target=${CARGO_TARGET_DIR:-$HOME/.cache/pg_duplex/target}
control=pg_ext/pg_duplex.control
version=$(sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" $control)

if [ "${1:-}" = test ]; then
  PGRX_PG_CONFIG_PATH=$PG_CONFIG CARGO_TARGET_DIR=$target \
    cargo test --locked --release -p pg_duplex --lib --no-default-features --features "pg$major"
  exit
fi

say "building the extension for PostgreSQL $major"
PGRX_PG_CONFIG_PATH=$PG_CONFIG CARGO_TARGET_DIR=$target \
  cargo build --locked --release -p pg_duplex --no-default-features --features "pg$major"

# The SQL is written by hand, one file a subject; PostgreSQL wants one file.
sql=$target/pg_duplex--$version.sql
{
  echo '\echo Use "CREATE EXTENSION pg_duplex" to load this file. \quit'
  for file in sql/[0-9][0-9]_*.sql; do
    echo
    cat "$file"
  done
} >"$sql.new"
mv -f "$sql.new" "$sql"

if [ "${1:-}" = install ]; then
  library_dir=$("$PG_CONFIG" --pkglibdir)
  extension_dir=$("$PG_CONFIG" --sharedir)/extension
  say "installing into $library_dir and $extension_dir"
  put 755 "$target/release/libpg_duplex.so" "$library_dir/pg_duplex.so"
  put 644 "$sql" "$extension_dir/pg_duplex--$version.sql"
  for upgrade in sql/upgrade/pg_duplex--*.sql; do
    [ ! -e "$upgrade" ] || put 644 "$upgrade" "$extension_dir/$(basename "$upgrade")"
  done
  # Last: once it is there, CREATE EXTENSION finds everything.
  put 644 $control "$extension_dir/pg_duplex.control"
fi
