#!/usr/bin/env bash
# Fetches Apache Kafka's jars from Maven Central, once, and prints the folder they are in.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

home=${DUPLEX_KAFKA_HOME:-$HOME/.cache/pg_duplex/kafka-4.1.0}
if ! ls "$home"/kafka_2.13-*.jar >/dev/null 2>&1; then
  say "fetching Apache Kafka into $home"
  mkdir -p "$(dirname "$home")"
  fresh=$(mktemp -d "$home.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  try() { mvn -q -B -f tests/lab/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$fresh" >&2; }
  try || { say "once more"; sleep 5; try; }
  chmod 755 "$fresh"
  # Another run may have been faster; either copy is as good. A folder without the broker is what an older run left.
  ls "$home"/kafka_2.13-*.jar >/dev/null 2>&1 || rm -rf "$home"
  mv -T "$fresh" "$home" 2>/dev/null || [ -d "$home" ]
fi
echo "$home"
