# The broker, and the sample API for docker-compose.yml, each in an image that holds one static binary and the CA certificates.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=development
ARG COMMIT=unknown
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT}" -o /out/ ./cmd/...

FROM scratch AS sample-api
COPY --from=build /out/sample-api /sample-api
USER 65532:65532
EXPOSE 8081
ENTRYPOINT ["/sample-api"]

FROM scratch AS cloakroom
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/cloakroom /cloakroom
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/cloakroom"]
CMD ["serve", "--config", "/etc/cloakroom/cloakroom.yaml"]
