# The litefs image: the binary, sqlite3, fuse3 and CA certificates. As a base for others:
#
#   COPY --from=litefs /usr/local/bin/litefs /usr/local/bin/litefs
#
# Run with: --device /dev/fuse --cap-add SYS_ADMIN
ARG RUST_IMAGE=rust:1-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

# Everything but the binary; integration/images.sh puts one on it that was built outside.
FROM ${BASE_IMAGE} AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates fuse3 sqlite3 \
 && rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["litefs", "mount"]

FROM ${RUST_IMAGE} AS build
ARG LITEFS_COMMIT=unknown
ENV LITEFS_COMMIT=${LITEFS_COMMIT}
WORKDIR /litefs
COPY . .
RUN cargo build --release --locked --workspace --bin litefs && strip --strip-debug target/release/litefs

FROM runtime
COPY --from=build /litefs/target/release/litefs /usr/local/bin/litefs
