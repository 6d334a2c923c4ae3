# PostgreSQL with the extension: the official image, and three files in it. Everything that the official image offers
# (POSTGRES_*, /docker-entrypoint-initdb.d, secrets in *_FILE) works as there. DUPLEX_* variables: docker/README.md.
#
#   docker build -f docker/postgres.Dockerfile -t pg_duplex/postgres .
#   docker build -f docker/postgres.Dockerfile -t pg_duplex/postgres:17 --build-arg PG_MAJOR=17 .
#
# `--target prebuilt` takes the extension from docker/prebuilt instead of compiling it. It stands before the stage that
# compiles because engines without BuildKit build every stage above the target.
ARG PG_MAJOR=15
ARG POSTGRES_IMAGE=postgres:${PG_MAJOR}-bookworm
ARG RUST_IMAGE=rust:1.95-bookworm

FROM ${POSTGRES_IMAGE} AS runtime
ARG PG_MAJOR
COPY docker/postgres/duplex.conf /usr/share/pg_duplex/duplex.conf
# In the sample file, not on the command line: initdb copies it, so whoever gives the container another command does not
# lose track_commit_timestamp, without which a database cannot be a node.
RUN sample=/usr/share/postgresql/${PG_MAJOR}/postgresql.conf.sample \
 && cat /usr/share/pg_duplex/duplex.conf >> "$sample" \
 && if [ "${PG_MAJOR}" -ge 18 ]; then echo 'max_active_replication_origins = 32' >> "$sample"; fi
COPY docker/postgres/10-pg-duplex.sh /docker-entrypoint-initdb.d/10-pg-duplex.sh
# Over TCP: while the database is being made, the server listens on its socket alone, and nobody should come yet.
HEALTHCHECK --interval=2s --timeout=3s --start-period=60s --retries=15 \
  CMD pg_isready -q -h 127.0.0.1 -U "${POSTGRES_USER:-postgres}" -d "${POSTGRES_DB:-${POSTGRES_USER:-postgres}}"

FROM runtime AS prebuilt
ARG PG_MAJOR
COPY docker/prebuilt/pg_duplex.so /usr/lib/postgresql/${PG_MAJOR}/lib/
COPY docker/prebuilt/pg_duplex.control docker/prebuilt/pg_duplex--*.sql /usr/share/postgresql/${PG_MAJOR}/extension/

FROM ${RUST_IMAGE} AS rust

# Built where it will run: the same headers, the same C library.
FROM ${POSTGRES_IMAGE} AS build
ARG PG_MAJOR
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates gcc libc6-dev libclang-dev pkg-config postgresql-server-dev-${PG_MAJOR} \
 && rm -rf /var/lib/apt/lists/*
COPY --from=rust /usr/local/rustup /usr/local/rustup
COPY --from=rust /usr/local/cargo /usr/local/cargo
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:$PATH
WORKDIR /src
# Without rust-toolchain.toml: the image is the toolchain, and rustup has nothing to fetch.
COPY Cargo.toml Cargo.lock ./
COPY protocol protocol
COPY pg_ext pg_ext
COPY relay relay
COPY tests tests
COPY scripts scripts
COPY sql sql
RUN PG_CONFIG=/usr/lib/postgresql/${PG_MAJOR}/bin/pg_config CARGO_TARGET_DIR=/target scripts/extension.sh install

FROM runtime AS compiled
ARG PG_MAJOR
COPY --from=build /usr/lib/postgresql/${PG_MAJOR}/lib/pg_duplex.so /usr/lib/postgresql/${PG_MAJOR}/lib/
COPY --from=build \
  /usr/share/postgresql/${PG_MAJOR}/extension/pg_duplex.control \
  /usr/share/postgresql/${PG_MAJOR}/extension/pg_duplex--*.sql \
  /usr/share/postgresql/${PG_MAJOR}/extension/
