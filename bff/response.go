package bff

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
)

// statusClientLeft is logged, never sent: there was nobody left to send it to.
const statusClientLeft = 499

// response is the ResponseWriter of every request: it knows what was answered, for the log line at the edge.
type response struct {
	http.ResponseWriter
	requestID string
	page      page // whether a person looks at the answer

	oauthErrors bool // errors are those of OAuth (RFC 6749 5.2), because a provider reads them

	status  int
	bytes   int64
	problem *problem
	session string // the ID of the session that the request was made in
}

// page says how an error is shown to a person.
type page int

const (
	noPage    page = iota // it is not: it is problem+json
	plainPage             // with the way back to the app
	loginPage             // with the way to sign in again as well
)

func newResponse(w http.ResponseWriter) *response {
	var id [8]byte
	rand.Read(id[:])
	return &response{ResponseWriter: w, requestID: hex.EncodeToString(id[:])}
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
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Flush sends what has been written.
func (w *response) Flush() { http.NewResponseController(w.ResponseWriter).Flush() }

// Unwrap lets http.ResponseController reach what the server's writer can do besides.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
