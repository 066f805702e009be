# docker build . builds the image cloakroom. It has one static binary and the CA certificates, no
# shell. The version is that of .git: a tag, or the commit.
#
# target    image
# cloakroom   the broker, from source
# release     the broker, from a binary of goreleaser (.goreleaser.yaml)
# sample-api  the API of docker-compose.yml
FROM --platform=$BUILDPLATFORM golang:1.26 AS certificates

FROM certificates AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags "-s -w" -o /out/ ./cmd/...

FROM scratch AS sample-api
COPY --from=build /out/sample-api /sample-api
USER 65532:65532
EXPOSE 8081
ENTRYPOINT ["/sample-api"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/sample-api", "--health"]

FROM scratch AS base
LABEL org.opencontainers.image.title="Cloakroom" \
      org.opencontainers.image.description="Backend for frontend that keeps the OAuth tokens of a single-page app on the server" \
      org.opencontainers.image.source="https://github.com/cloakroom-bff/cloakroom" \
      org.opencontainers.image.documentation="https://github.com/cloakroom-bff/cloakroom/blob/main/docs/deployment.md" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=certificates /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
# It makes :8080 the default of server.listen.
ENV container=oci
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/cloakroom"]
CMD ["serve", "--config", "/etc/cloakroom/cloakroom.yaml"]
# Kubernetes ignores it and has probes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["/cloakroom", "health", "--config", "/etc/cloakroom/cloakroom.yaml"]

FROM base AS release
ARG TARGETPLATFORM
COPY $TARGETPLATFORM/cloakroom /cloakroom

FROM base AS cloakroom
COPY --from=build /out/cloakroom /cloakroom
