# The litefs image: the binary, sqlite3, fuse3 and CA certificates. As a base for others:
#
#   COPY --from=litefs /usr/local/bin/litefs /usr/local/bin/litefs
#
# Run with: --device /dev/fuse --cap-add SYS_ADMIN
ARG RUST_IMAGE=rust:1-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates fuse3 sqlite3 \
 && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["litefs", "mount"]

# A binary built outside: --target prebuilt, with the binary as ./litefs in the context (integration/images.sh does it that way).
# It stands before the stage that compiles, because the engine's old builder makes every stage before its target.
FROM runtime AS prebuilt
COPY litefs /usr/local/bin/litefs

FROM ${RUST_IMAGE} AS build
ARG LITEFS_COMMIT=unknown
ENV LITEFS_COMMIT=${LITEFS_COMMIT}
WORKDIR /litefs
COPY . .
RUN cargo build --release --locked --workspace --bin litefs && strip --strip-debug target/release/litefs

FROM runtime
COPY --from=build /litefs/target/release/litefs /usr/local/bin/litefs
