# Two images from one build: `strongroom` (the default) and `softhsm`, which also has a software HSM
# behind PKCS#11 for demonstrations. The bases are arguments, so that a mirror or a locally made base
# serves where the public ones can not be had.
ARG BUILD_BASE=rust:1.95-bookworm
ARG RUN_BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package node --bin strongroom \
    && install -D -m 0755 target/release/strongroom /out/usr/local/bin/strongroom \
    && install -D -m 0644 LICENSE /out/licenses/LICENSE \
    && install -d /empty

FROM ${RUN_BASE} AS softhsm
# The version is the distribution's: pinning it would pin the base as well.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends softhsm2 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/ /
COPY --from=build --chown=65532:65532 --chmod=0700 /empty /var/lib/strongroom
USER 65532:65532
EXPOSE 8443 8444
VOLUME /var/lib/strongroom
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
    CMD ["strongroom", "health", "--config", "/etc/strongroom/node.toml"]
ENTRYPOINT ["strongroom"]
CMD ["server", "--config", "/etc/strongroom/node.toml"]

# No shell is needed and none is called; PKCS#11 libraries are loaded at run time, so it is glibc.
FROM ${RUN_BASE} AS strongroom
COPY --from=build /out/ /
COPY --from=build --chown=65532:65532 --chmod=0700 /empty /var/lib/strongroom
USER 65532:65532
EXPOSE 8443 8444
VOLUME /var/lib/strongroom
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s \
    CMD ["strongroom", "health", "--config", "/etc/strongroom/node.toml"]
ENTRYPOINT ["strongroom"]
CMD ["server", "--config", "/etc/strongroom/node.toml"]
