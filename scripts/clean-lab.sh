#!/usr/bin/env bash
# Removes folders of labs whose process is gone. A lab removes its own, whatever ends it; this is for a machine
# that was switched off meanwhile.
set -euo pipefail

for folder in "${TMPDIR:-/tmp}"/duplex-lab-*; do
  [ -d "$folder" ] || continue
  owner=$(cat "$folder/owner.pid" 2>/dev/null || echo 0)
  if [ "$owner" -gt 0 ] && [ -d "/proc/$owner" ]; then
    echo "$folder is in use by process $owner"
  else
    rm -rf "$folder"
    echo "removed $folder"
  fi
done
