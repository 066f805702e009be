package bff

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
	"github.com/cloakroom-bff/cloakroom/bff/proxy"
	"github.com/cloakroom-bff/cloakroom/internal/pace"
)

// statusClientLeft is logged, never sent: there was nobody left to send it to.
const statusClientLeft = 499

// response is the ResponseWriter of every request: it knows what was answered, for the log line at the edge.
type response struct {
	http.ResponseWriter
	began     time.Time
	requestID string
	client    string // address
	method    string
	path      string // never the query: codes and states are in it
	page      page   // whether a person looks at the answer
	detached  bool   // the response continues after the handler has returned, and is logged when it ends

	// Of a response that no upstream sends:
	paced   *Server // whose limit is in force; nil: none
	pace    pace.Monitor
	writing atomic.Bool // to the client
	slow    atomic.Bool // it was ended because the client reads too slowly

	access   access       // of a request to a route
	exchange proxy.Record // with the route's upstream

	oauthErrors bool // errors are those of OAuth (RFC 6749 5.2), because a provider reads them

	status  int
	bytes   int64
	problem *problem.Problem
	session string // the ID of the session that the request was made in

	refusedCookies []string // names of those that cookieRefused has logged
}

// page says how an error is shown to a person.
type page int

const (
	noPage     page = iota // it is not: it is problem+json
	plainPage              // with the way back to the app
	loginPage              // with the way to sign in again as well
	silentPage             // it is not: a page in an iframe tells the app that nobody is signed in
)

func (s *Server) newResponse(w http.ResponseWriter, r *http.Request) *response {
	return &response{ResponseWriter: w, began: time.Now(), requestID: requestID(r), client: s.clientIP(r), method: r.Method, path: r.URL.Path}
}

// requestID is the trace-id of a request that is part of a trace (W3C Trace Context 3.2), else a random name.
func requestID(r *http.Request) string {
	if parent := r.Header["Traceparent"]; len(parent) == 1 {
		if id, ok := traceID(parent[0]); ok {
			return id
		}
	}
	var id [8]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// traceID reads version-trace-parent-flags, the trace being 32 hexadecimal digits that are not all zero.
func traceID(parent string) (string, bool) {
	parts := strings.SplitN(parent, "-", 5)
	if len(parts) < 4 || len(parts[0]) != 2 || parts[0] == "ff" || parts[0] == "00" && len(parts) > 4 || len(parts[1]) != 32 || len(parts[2]) != 16 || len(parts[3]) != 2 {
		return "", false
	}
	digits := strings.Join(parts[:4], "")
	hexadecimal := strings.IndexFunc(digits, func(c rune) bool { return (c < '0' || c > '9') && (c < 'a' || c > 'f') }) < 0
	return parts[1], hexadecimal && strings.Trim(parts[1], "0") != "" && strings.Trim(parts[2], "0") != ""
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	if w.paced != nil && w.bytes == 0 && !pace.IsStream(w.Header().Get("Content-Type")) {
		w.pace.Start(w.paced.pace, w.writing.Load, w.endSlow)
	}
	w.writing.Store(true)
	n, err := w.ResponseWriter.Write(b)
	w.writing.Store(false)
	w.pace.Add(n)
	w.bytes += int64(n)
	return n, err
}

// endSlow ends a response that the client does not read. A handler that is not
// writing is slow itself, which is its own affair.
func (w *response) endSlow(client bool) {
	if client {
		w.slow.Store(true)
		http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Now())
	}
}

// Flush sends what has been written.
func (w *response) Flush() { http.NewResponseController(w.ResponseWriter).Flush() }

// Unwrap lets http.ResponseController reach what the server's writer can do besides.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
