# The relay as a container: one binary, no configuration but two addresses (DUPLEX_DATABASE, DUPLEX_KAFKA).
#
#   docker build -f docker/relay.Dockerfile -t pg_duplex/relay .
#
# `--target prebuilt` takes the binary from docker/prebuilt instead of compiling it. It stands before the stage that
# compiles because engines without BuildKit build every stage above the target.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim

FROM ${DEBIAN_IMAGE} AS runtime
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates libsasl2-2 libssl3 zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --no-log-init --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin duplex
USER duplex
# The relay drains what it holds and exits 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["duplex-relay"]
CMD ["run"]

FROM runtime AS prebuilt
COPY docker/prebuilt/duplex-relay /usr/local/bin/duplex-relay

FROM ${RUST_IMAGE} AS build
# librdkafka is compiled from source; it includes curl's header although it is built without curl.
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      cmake g++ libcurl4-openssl-dev libsasl2-dev libssl-dev make pkg-config zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Without rust-toolchain.toml: the image is the toolchain, and rustup has nothing to fetch.
COPY Cargo.toml Cargo.lock ./
COPY protocol protocol
COPY pg_ext pg_ext
COPY relay relay
COPY tests tests
RUN CARGO_TARGET_DIR=/target cargo build --locked --release -p duplex-relay

FROM runtime AS compiled
COPY --from=build /target/release/duplex-relay /usr/local/bin/duplex-relay
