package bff

import (
	"net/http"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/proxy"
)

// LogRequest writes the access log line of a proxied request in a session.
func (s *Server) LogRequest(path string) {
	s.current.Load().logRequest(&response{
		server: s, began: time.Now(), requestID: "0123456789abcdef", client: "203.0.113.7",
		method: http.MethodGet, path: path, route: "/api/", status: http.StatusOK, bytes: 1234,
		session: "AAAAAAAAAAAAAAAAAAAAAA", subject: "auth0|0123456789abcdef01234567",
		exchange: proxy.Record{Upstream: "10.0.0.1:8080", UpstreamTime: 3 * time.Millisecond},
	}, time.Now())
}
