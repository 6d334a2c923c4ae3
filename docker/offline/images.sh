# shellcheck shell=bash
# Base images where no registry can be reached. Source it after engine.sh.

# Where they are put together.
images_work=''

# Whether to do without a registry: as DUPLEX_OFFLINE says, else as a trial pull of the smallest base image shows.
offline() {
  case ${DUPLEX_OFFLINE:-} in
    yes) return 0 ;;
    no) return 1 ;;
  esac
  ! timeout 60 docker pull -q debian:bookworm-slim >/dev/null 2>&1
}

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

# The bases, unless an earlier run left them on this engine, and the binaries for docker/prebuilt.
offline_images() {
  offline_binaries
  images_work=$(mktemp -d "${TMPDIR:-/tmp}/duplex-images-XXXXXX")
  if ! has_image pg_duplex/offline-debian; then
    say 'making a Debian base image with debootstrap'
    need_command debootstrap debootstrap
    as_root debootstrap --variant=minbase bookworm "$images_work/root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" \
      >"$images_work/log" 2>&1 || { tail -n 20 "$images_work/log" >&2; die 'debootstrap failed'; }
    as_root tar -C "$images_work/root" --exclude='./var/cache/apt/archives/*.deb' -c . \
      | docker import --change 'CMD ["bash"]' - pg_duplex/offline-debian >/dev/null
    as_root rm -rf "$images_work/root"
  fi
  if ! has_image pg_duplex/offline-postgres; then
    say 'making a PostgreSQL base image'
    docker build --network host -t pg_duplex/offline-postgres -f docker/offline/postgres.Dockerfile docker/offline >&2
  fi
  if ! has_image pg_duplex/offline-kafka; then
    say 'making a Kafka base image'
    cp docker/offline/kafka-entrypoint.sh "$images_work/"
    cp -rL "$(scripts/kafka.sh)" "$images_work/jars"
    docker build --network host -t pg_duplex/offline-kafka -f docker/offline/kafka.Dockerfile "$images_work" >&2
  fi
  offline_clean
}

# Removes what is only needed meanwhile; called at the end, too, whatever it was that ended the run.
offline_clean() {
  [ -n "$images_work" ] || return 0
  remove_folder "$images_work"
  images_work=''
}

# What `make build` made for the PostgreSQL that the base image has.
offline_binaries() {
  local config=/usr/lib/postgresql/15/bin/pg_config
  local target=${CARGO_TARGET_DIR:-$HOME/.cache/pg_duplex/target}
  say 'building the binaries outside the images'
  PG_CONFIG=$config "${MAKE:-make}" --no-print-directory build kafka >&2
  mkdir -p docker/prebuilt
  rm -f docker/prebuilt/*
  cp "$target/release/duplex-relay" docker/prebuilt/
  cp "$target/release/libpg_duplex.so" docker/prebuilt/pg_duplex.so
  cp pg_ext/pg_duplex.control "$target"/pg_duplex--*.sql docker/prebuilt/
}
