#!/usr/bin/env bash
# Turns KAFKA_* variables into a properties file as the official image does (KAFKA_NODE_ID is node.id; "__" is "_",
# "___" is "-"), formats an empty volume, and becomes the broker.
set -euo pipefail

properties=/opt/kafka/server.properties
: >"$properties"
for variable in "${!KAFKA_@}"; do
  [ "$variable" != KAFKA_HEAP_OPTS ] || continue
  key=${variable#KAFKA_}
  key=${key,,}
  key=${key//___/-}
  key=${key//__/$'\n'}
  key=${key//_/.}
  key=${key//$'\n'/_}
  printf '%s=%s\n' "$key" "${!variable}" >>"$properties"
done

java -cp '/opt/kafka/libs/*' kafka.tools.StorageTool format --ignore-formatted -t "$CLUSTER_ID" -c "$properties"
# shellcheck disable=SC2086 # several options
exec java ${KAFKA_HEAP_OPTS:-} -cp '/opt/kafka/libs/*' kafka.Kafka "$properties"
