package devidp

import (
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"time"
)

// pushedRequest is a pushed authorization request (RFC 9126).
type pushedRequest struct {
	request *authRequest
	expires time.Time
}

// push is the endpoint for pushed authorization requests (RFC 9126 2).
func (p *Provider) push(w http.ResponseWriter, r *http.Request) {
	request, fault := p.readPushed(w, r)
	if fault != nil {
		fault.write(w)
		return
	}
	request.uri = "urn:ietf:params:oauth:request_uri:" + rand.Text()
	p.mu.Lock()
	p.prune()
	p.stats.PushedRequests++
	p.pushed[request.uri] = &pushedRequest{request, time.Now().Add(pushedLife)}
	p.mu.Unlock()
	writeJSON(
		w,
		http.StatusCreated,
		map[string]any{"request_uri": request.uri, "expires_in": int(pushedLife / time.Second)},
	)
}

func (p *Provider) readPushed(w http.ResponseWriter, r *http.Request) (*authRequest, *oauthError) {
	if fault := readForm(w, r); fault != nil {
		return nil, fault
	}
	client, fault := p.authenticate(r)
	if fault != nil {
		return nil, fault
	}
	if r.PostForm.Has("request_uri") {
		return nil, &oauthError{"invalid_request", "a request_uri cannot be pushed"}
	}
	r.PostForm.Set("client_id", client.ID)
	request, err := p.readRequest(r.PostForm)
	if err != nil {
		return nil, &oauthError{"invalid_request", err.Error()}
	}
	if request.fault != nil {
		return nil, request.fault
	}
	jkt, fault := p.checkProof(w, r, "")
	if fault != nil {
		return nil, fault
	}
	if jkt != "" && request.jkt != "" && jkt != request.jkt { // RFC 9449 10.1
		return nil, &oauthError{"invalid_dpop_proof", "dpop_jkt does not match the key of the proof"}
	}
	if jkt != "" {
		request.jkt = jkt
	}
	return request, nil
}

// requested returns the authorization request in q, or the pushed request that
// q names. An error is shown to the user.
func (p *Provider) requested(q url.Values) (*authRequest, error) {
	uri := q.Get("request_uri")
	if uri == "" {
		if client := p.client(q.Get("client_id")); client != nil && client.PushesRequests {
			return nil, errors.New("the client must push its requests, and this one was not pushed")
		}
		return p.readRequest(q)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pushed := p.pushed[uri]
	if pushed == nil || time.Now().After(pushed.expires) || pushed.request.client.ID != q.Get("client_id") {
		return nil, errors.New("it was used already, has expired, or never existed")
	}
	pushed.expires = time.Now().Add(patience) // the page may be loaded again (RFC 9126 4), and the user may think
	return pushed.request, nil
}
