# docker build -t ankipi . ; docker run -d -p 8080:8080 -v ankipi:/data ankipi
# Accounts: docker exec -it CONTAINER /ankipi user add NAME
# Another processor: docker build --platform linux/arm64 -t ankipi .
FROM rust:1.95-alpine3.22 AS build
RUN apk add --no-cache musl-dev=~1.2
WORKDIR /src
COPY . .
# Static by itself on Alpine. The folders are made here, since nothing can run in an empty image.
RUN cargo build --release --locked && mkdir -m 700 /data && mkdir -m 1777 /scratch

# The program, its data folder and a folder for what SQLite sorts, and nothing else: no shell, no libraries.
FROM scratch
COPY --from=build /src/target/release/ankipi /ankipi
COPY --from=build --chown=10001:10001 /data /data
COPY --from=build /scratch /tmp
USER 10001:10001
ENV SYNC_BASE=/data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["/ankipi"]
