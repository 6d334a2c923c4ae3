#!/usr/bin/env bash
# Fetches Kafka Connect, Debezium and the JDBC sink from Maven Central, once, for the benchmarks alone, and prints the
# folder they are in.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

home=${DUPLEX_CONNECT_HOME:-$HOME/.cache/pg_duplex/connect-4.1.0}
if [ ! -d "$home" ]; then
  say "fetching Kafka Connect and Debezium into $home"
  mkdir -p "$(dirname "$home")"
  fresh=$(mktemp -d "$home.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  fetch() { mvn -q -B -f tests/bench/older/pom.xml -P "$1" dependency:copy-dependencies -DoutputDirectory="$fresh/$2" >&2; }
  for part in connect:connect source:plugins/source sink:plugins/sink; do
    fetch "${part%%:*}" "${part#*:}" || { say "once more"; sleep 5; fetch "${part%%:*}" "${part#*:}"; }
  done
  # What the worker has already must not come a second time with a connector: its classes would be others.
  rm -f "$fresh"/plugins/*/{jackson-,kafka-clients,connect-,slf4j}*
  chmod 755 "$fresh"
  # Another run may have been faster; either copy is as good.
  mv -T "$fresh" "$home" 2>/dev/null || [ -d "$home" ]
fi
echo "$home"
