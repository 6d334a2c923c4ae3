#!/usr/bin/env bash
# Builds a PostgreSQL from its source, once, and prints its pg_config: scripts/postgresql.sh 18
# A release of Debian has one major version; the suite runs on the others so (`make majors`).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# The source as its project published it, which is what distributions keep, too: the project's server has all of them, the
# distributions' the last ones. A checksum says that it is the same wherever it came from.
case ${1:-} in
  16)
    version=16.15 packed=tar.gz sha256=4f200ca23dfb120ff9838f13ce06014aad1d3c432d16ee9f93ab2000c0eeef7b
    mirror=http://archive.ubuntu.com/ubuntu
    ;;
  17)
    version=17.11 packed=tar.bz2 sha256=dd27f2b3c59e73ed14aa3324901242bf69a032a6347805f274e6260322d42979
    mirror=http://deb.debian.org/debian
    ;;
  18)
    version=18.6 packed=tar.bz2 sha256=555610c24d53e4316da5b7d3fc25c279d96856d5e0e23ee308c328c5fa881d9f
    mirror=http://deb.debian.org/debian
    ;;
  *) die "say which one: 16, 17 or 18 (for 15 there are Debian's packages)" ;;
esac

# Servers of root run as another user, who has to read what is built, and cannot look into root's home.
umask 022
cache=$HOME/.cache/pg_duplex
if [ "$(id -u)" -eq 0 ]; then cache=/var/cache/pg_duplex; fi
home=$cache/postgresql-$version

if [ ! -x "$home/bin/pg_config" ]; then
  # What the source needs beside a C compiler, and the libraries that Debian builds it with and the suite uses.
  packages=(bison bzip2 curl flex libicu-dev liblz4-dev libssl-dev libxml2-dev libzstd-dev make perl pkg-config zlib1g-dev)
  # Elsewhere, what is missing is in the log.
  if command -v dpkg-query >/dev/null; then
    dpkg-query -W "${packages[@]}" >/dev/null 2>&1 || install_packages "${packages[@]}"
  fi

  say "building PostgreSQL $version into $home"
  mkdir -p "$cache"
  fresh=$(mktemp -d "$home.XXXXXX")
  trap 'rm -rf "$fresh"' EXIT
  fetch() { curl -fsSL --retry 3 -o "$fresh/source" "$1" && echo "$sha256 $fresh/source" | sha256sum --check --status; }
  major=${version%%.*}
  fetch "https://ftp.postgresql.org/pub/source/v$version/postgresql-$version.$packed" ||
    fetch "$mirror/pool/main/p/postgresql-$major/postgresql-${major}_$version.orig.$packed" ||
    die "neither ftp.postgresql.org nor ${mirror#http://} has the source of PostgreSQL $version that is known here"
  tar -x -C "$fresh" -f "$fresh/source"
  log=$cache/postgresql-$version.log
  build() {
    # Flags of a make that runs this script are not for these.
    unset MAKEFLAGS MAKELEVEL
    cd "$fresh/postgresql-$version" &&
      ./configure --prefix="$home" --without-readline --with-icu --with-libxml --with-lz4 --with-openssl --with-zstd &&
      make -j"$(nproc)" && make -j"$(nproc)" -C contrib &&
      make install DESTDIR="$fresh/installed" && make -C contrib install DESTDIR="$fresh/installed"
  }
  (build) >"$log" 2>&1 || die "PostgreSQL $version does not build: see $log"
  # Another run may have been faster; either copy is as good.
  mv -T "$fresh/installed$home" "$home" 2>/dev/null || [ -x "$home/bin/pg_config" ]
fi
echo "$home/bin/pg_config"
