package bff

import (
	"net/http"

	"github.com/cloakroom-bff/cloakroom/bff/problem"
)

// ErrorPage responds with an error to a navigation for which Config.Frontend
// has no page, in the same form as the Server's own errors: in the user's
// language, and with Config.Page. The request must be one that a Server has
// passed to Config.Frontend; others get plain text. The status is 404, 503 or
// 500. Package web has a field for this function: Config.ErrorPage.
func ErrorPage(w http.ResponseWriter, r *http.Request, status int) {
	res := responseOf(w)
	if res == nil || res.handledBy == nil {
		http.Error(w, http.StatusText(status), status)
		return
	}
	p := problem.Internal
	res.page = plainPage
	switch status {
	case http.StatusNotFound:
		p = problem.NotFound
	case http.StatusServiceUnavailable:
		p = problem.FrontendUnavailable
		res.page = waitingPage
	}
	res.handledBy.writeProblem(res, r, p)
}

// responseOf returns the Server's writer that w wraps; nil if there is none.
func responseOf(w http.ResponseWriter) *response {
	for {
		switch inner := w.(type) {
		case *response:
			return inner
		case interface{ Unwrap() http.ResponseWriter }: // as for http.ResponseController
			w = inner.Unwrap()
		default:
			return nil
		}
	}
}
