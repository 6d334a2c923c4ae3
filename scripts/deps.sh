#!/usr/bin/env bash
# Installs what is missing to build, test and show pg_duplex on Debian or Ubuntu; does nothing if nothing is missing.
# Says what to install elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

packages=()
# need PACKAGE CHECK...: the package is wanted if the check fails.
need() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || packages+=("$package")
}
has_header() { echo "#include <$1>" | ${CC:-cc} -E -x c - ; }
# The newest server that pg_duplex builds for, of those installed as Debian does it; empty if there is none.
newest_server() {
  local major
  for major in 18 17 16 15; do
    if [ -x "/usr/lib/postgresql/$major/bin/postgres" ]; then
      echo "$major"
      return
    fi
  done
}
# The server to build for: the one that was named, else the newest, else what is in the path.
server_config() {
  if [ -n "${PG_CONFIG:-}" ]; then
    echo "$PG_CONFIG"
  elif [ -n "$newest" ]; then
    echo "/usr/lib/postgresql/$newest/bin/pg_config"
  else
    echo pg_config
  fi
}
# A pg_config alone is no server: the client library's packages have one, too.
has_server() { [ -x "$("$(server_config)" --bindir)/postgres" ]; }
has_server_headers() { [ -f "$("$(server_config)" --includedir-server)/postgres.h" ]; }
has_libclang() { [ -n "${LIBCLANG_PATH:-}" ] || ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so*; }
has_jdk() { java -version 2>&1 | grep -Eq 'version "(1[7-9]|[2-9][0-9])'; }
# The version that Debian 12 has; another one is used if it is there already.
newest=$(newest_server)
major=${newest:-15}

need gcc command -v cc
# librdkafka's build asks for a C++ compiler; gcc alone brings no headers of the C library either.
need g++ command -v c++
need libc6-dev has_header stdio.h
need make command -v make
need cmake command -v cmake
need pkg-config command -v pkg-config
need "postgresql-$major" has_server
need "postgresql-server-dev-$major" has_server_headers
need libclang-dev has_libclang
need libssl-dev has_header openssl/ssl.h
need libsasl2-dev has_header sasl/sasl.h
need zlib1g-dev has_header zlib.h
# librdkafka 2.12 includes this header although it is built without curl.
need libcurl4-openssl-dev has_header curl/curl.h
need openjdk-17-jdk-headless has_jdk
need maven command -v mvn
need util-linux command -v setpriv
need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt

if [ ${#packages[@]} -gt 0 ]; then
  # The package postgresql-NN would start a cluster of its own, which nobody asked for.
  if [[ " ${packages[*]} " == *" postgresql-$major "* ]] && command -v apt-get >/dev/null &&
    [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    as_root mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  install_packages "${packages[@]}"
  newest=$(newest_server)
  # No package of Debian brings what belongs to a server that came from elsewhere.
  has_server || die "there is no server beside $(server_config): say which one with PG_CONFIG=/path/to/pg_config"
  has_server_headers || die "the headers of $(server_config) are missing: its installation must bring postgres.h, too"
fi
command -v cargo >/dev/null || die "cargo is missing: install Rust from https://rustup.rs (rust-toolchain.toml picks the version)"
