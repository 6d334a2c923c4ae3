# shellcheck shell=bash
# What the scripts share. Source it; it expects `set -euo pipefail`.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Runs a command as root: at once if we are root, else through sudo.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -- "$@"
  else
    die "needs root for: $* (and there is no sudo)"
  fi
}

# Installs Debian's packages; the lists of a fresh image may be missing or old.
install_packages() {
  command -v apt-get >/dev/null || die "please install the counterparts of these Debian packages: $*"
  say "installing $*"
  local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends)
  if ! as_root "${install[@]}" "$@" >&2; then
    say "once more, with fresh lists of packages"
    as_root apt-get update -q >&2
    as_root "${install[@]}" "$@" >&2
  fi
}

# True if this user could create a file in the folder.
writable() { [ -d "$1" ] && [ -w "$1" ]; }

# Puts a file in place under a name that a running server may have mapped: the old file stays whole for whoever
# has it open, and nobody ever sees half of the new one.
put() {
  local mode=$1 from=$2 to=$3 run=as_root
  if writable "$(dirname "$to")"; then run=''; fi
  if cmp -s "$from" "$to"; then return; fi
  $run install -m "$mode" "$from" "$to.new"
  $run mv -f "$to.new" "$to"
}
