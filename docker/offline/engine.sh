# shellcheck shell=bash
# A Docker engine to work with, and a compose command. Source it after scripts/lib.sh.

# Debian has dockerd and debootstrap where an ordinary user's path does not lead.
PATH=$PATH:/usr/sbin:/sbin

engine=''
engine_pid=''
compose_command=()

# Installs a Debian package if a command is missing.
need_command() {
  command -v "$1" >/dev/null && return
  command -v apt-get >/dev/null || die "$1 is missing; please install it (Debian: $2)"
  say "installing $2"
  install_package() { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$1" >&2; }
  install_package "$2" 2>/dev/null || { as_root apt-get update -q >&2 && install_package "$2"; }
}

# The engine that answers, or one of our own.
engine_find() {
  if command -v docker >/dev/null && docker info >/dev/null 2>&1; then return; fi
  engine_start
}

# An engine for this run alone, in a folder of its own. It touches neither the machine's firewall nor its routes:
# containers talk to each other over a bridge, and only image builds, on the host's network, go outside.
engine_start() {
  need_command dockerd docker.io
  need_command docker docker.io
  engine=$(mktemp -d "${DUPLEX_DOCKER_ROOT:-/var/tmp}/duplex-docker-XXXXXX")
  say "no Docker engine answers: starting one in $engine"
  # The folder as the group's, so that an ordinary user may talk to the socket that root makes.
  as_root setsid dockerd --data-root "$engine/data" --exec-root "$engine/exec" --pidfile "$engine/pid" \
    --host "unix://$engine/docker.sock" --group "$(id -gn)" \
    --bridge=none --iptables=false --ip-forward=false --ip-masq=false >"$engine/log" 2>&1 &
  export DOCKER_HOST=unix://$engine/docker.sock
  local deadline=$((SECONDS + 60))
  until docker info >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || { tail -n 20 "$engine/log" >&2; die 'the Docker engine does not come up'; }
    sleep 0.3
  done
  engine_pid=$(cat "$engine/pid")
}

# Removes a folder that root has written to, and what is mounted in it.
remove_folder() {
  local mount
  while read -r mount; do as_root umount "$mount" || true; done \
    < <(awk -v folder="$1/" 'index($2, folder) == 1 { print $2 }' /proc/mounts | sort -r)
  as_root rm -rf "$1"
}

# Ends our own engine and removes all that it kept.
engine_stop() {
  [ -n "$engine" ] || return 0
  say 'ending the Docker engine'
  if [ -z "$engine_pid" ] && [ -f "$engine/pid" ]; then engine_pid=$(cat "$engine/pid"); fi
  if [ -n "$engine_pid" ]; then
    as_root kill "$engine_pid" 2>/dev/null || true
    local deadline=$((SECONDS + 30))
    while [ -d "/proc/$engine_pid" ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.2; done
  fi
  # Docker keeps a mount of its own there, for the network namespace of containers on the host's network.
  remove_folder "$engine"
  engine=''
}

compose_find() {
  if docker compose version >/dev/null 2>&1; then
    compose_command=(docker compose)
  else
    need_command docker-compose docker-compose
    compose_command=(docker-compose)
  fi
}
