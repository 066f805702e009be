package bearer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// parseResource parses Config.Resource (RFC 9728 section 1.2).
func parseResource(raw string) (*url.URL, error) {
	if raw == "" {
		return nil, nil
	}
	u, err := checkURL(raw, true)
	switch {
	case err != nil:
		return nil, err
	case u.RawQuery != "" || u.ForceQuery || strings.Contains(raw, "#"):
		return nil, fmt.Errorf("%q must not have a query or a fragment", raw)
	case !isQuotable(raw):
		return nil, errors.New("quotes and non-ASCII characters are not allowed")
	}
	return u, nil
}

const metadataPath = "/.well-known/oauth-protected-resource"

// Metadata returns the pattern and the handler for the protected resource
// metadata of this API (RFC 9728 section 3.1):
//
//	mux.Handle(verifier.Metadata())
//
// The metadata is public: every origin may read it. Metadata panics if
// Config.Resource is empty.
func (v *Verifier) Metadata() (pattern string, h http.Handler) {
	if v.resource == nil {
		panic("bearer: Metadata without Config.Resource")
	}
	metadata := struct {
		Resource             string   `json:"resource"`
		AuthorizationServers []string `json:"authorization_servers"`
		Scopes               []string `json:"scopes_supported,omitempty"`
		Methods              []string `json:"bearer_methods_supported"`
		Certificates         bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
		Proofs               []string `json:"dpop_signing_alg_values_supported,omitempty"`
		ProofRequired        bool     `json:"dpop_bound_access_tokens_required,omitempty"`
	}{
		Resource: v.resource.String(), Scopes: v.scopes, Methods: []string{"header"},
		Certificates: v.certificate != nil, ProofRequired: v.requireBound && v.certificate == nil,
	}
	if v.origin != "" {
		metadata.Proofs = proofAlgorithms
	}
	for _, i := range v.issuers {
		metadata.AuthorizationServers = append(metadata.AuthorizationServers, i.url)
	}
	body, err := json.Marshal(metadata)
	if err != nil {
		panic(err) // strings and booleans can always be encoded
	}
	return "GET " + v.metadataPath(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "max-age=3600")
		w.Header().Set("Access-Control-Allow-Origin", "*") // public metadata
		w.Write(body)                                      // an error means that the client is gone
	})
}

func (v *Verifier) metadataPath() string {
	return metadataPath + strings.TrimSuffix(v.resource.EscapedPath(), "/")
}

// metadataURL returns the URL of the metadata for challenges (RFC 9728 section
// 5.1), or "".
func (v *Verifier) metadataURL() string {
	if v.resource == nil {
		return ""
	}
	return v.resource.Scheme + "://" + v.resource.Host + v.metadataPath()
}
