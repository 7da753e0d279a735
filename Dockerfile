# docker build -t weir:0.1.0 .
# docker buildx build --platform linux/amd64,linux/arm64 .     compiles on this machine's processor for both, no emulation
#
# The system of the builder and that of the image are the same Debian: the binary finds the libc that it was linked with.
ARG RUST_VERSION=1.95.0
ARG DEBIAN=bookworm
ARG RUNTIME=gcr.io/distroless/cc-debian12:nonroot

FROM --platform=$BUILDPLATFORM rust:${RUST_VERSION}-${DEBIAN} AS build
ARG BUILDARCH
ARG TARGETARCH
WORKDIR /src
# Which compiler makes what for the wanted processor, for the steps below. Its version is that of the system.
# hadolint ignore=DL3008
RUN set -eu; \
    case "${TARGETARCH:-amd64}" in \
      amd64) machine=x86_64 MACHINE=X86_64 package=gcc-x86-64-linux-gnu ;; \
      arm64) machine=aarch64 MACHINE=AARCH64 package=gcc-aarch64-linux-gnu ;; \
      *) echo "no build for ${TARGETARCH}" >&2; exit 1 ;; \
    esac; \
    echo "export CARGO_BUILD_TARGET=${machine}-unknown-linux-gnu" >/build.env; \
    if [ "${TARGETARCH:-}" != "${BUILDARCH:-}" ]; then \
      rustup target add "${machine}-unknown-linux-gnu"; \
      apt-get update; \
      apt-get install -y --no-install-recommends "${package}" "libc6-dev-${TARGETARCH}-cross"; \
      rm -rf /var/lib/apt/lists/*; \
      echo "export CARGO_TARGET_${MACHINE}_UNKNOWN_LINUX_GNU_LINKER=${machine}-linux-gnu-gcc" >>/build.env; \
      echo "export CC_${machine}_unknown_linux_gnu=${machine}-linux-gnu-gcc" >>/build.env; \
    fi
ENV CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_STRIP=symbols
# The dependencies by themselves: a layer that a change of the sources leaves alone.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    set -eu; . /build.env; \
    mkdir -p src benches tests/it tests/interop; \
    for file in build.rs src/main.rs benches/naive.rs benches/engine.rs tests/it/main.rs tests/interop/main.rs; do \
      echo 'fn main() {}' >"$file"; \
    done; \
    touch src/lib.rs; \
    cargo build --release --locked --bin weir; \
    rm -rf src build.rs
COPY build.rs ./
COPY proto proto
COPY src src
# Newer than what was built of the stand-ins above.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    set -eu; . /build.env; \
    touch build.rs src/main.rs src/lib.rs; \
    cargo build --release --locked --bin weir; \
    mkdir -p /out/data; \
    cp "target/${CARGO_BUILD_TARGET}/release/weir" /out/weir

FROM ${RUNTIME}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="weir" \
      org.opencontainers.image.description="Durable gRPC streaming over one ordered, replayable log" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="https://github.com/weir-stream/weir" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/weir /usr/local/bin/weir
COPY docker/weir.toml /etc/weir/weir.toml
# A volume that is mounted here for the first time belongs to this user.
COPY --from=build --chown=65532:65532 /out/data /var/lib/weir
USER 65532:65532
WORKDIR /var/lib/weir
EXPOSE 50051 50053 50054 50055 8080 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/local/bin/weir", "health"]
ENTRYPOINT ["/usr/local/bin/weir"]
CMD ["serve", "--config", "/etc/weir/weir.toml"]
