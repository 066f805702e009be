package devidp

import (
	"crypto/rand"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Profile makes the provider behave like a service that tests cannot use:
// its documented endpoints, metadata, responses and quirks.
type Profile struct {
	Name       string
	IssuerPath string
	config     func(*Config)
	paths      map[string]string // :: path at the service → path of this provider
	lacks      []string          // metadata that the service does not have
	metadata   map[string]any    // metadata that it has in addition
	hooks      func(p *Provider, seen *seen) Hooks
}

// seen remembers parameters on which later responses depend.
type seen struct {
	mu   sync.Mutex
	last map[string]string // of the last authorization request
}

func (s *seen) get(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last[name]
}

// Config sets the fields that belong to the profile.
func (f Profile) Config(cfg *Config) {
	cfg.Issuer, cfg.CookiePath = f.IssuerPath, "/"
	if f.config != nil {
		f.config(cfg)
	}
}

// Hooks returns the hooks that make p behave as the profile.
func (f Profile) Hooks(p *Provider) Hooks {
	s := new(seen)
	h := f.hooks(p, s)
	particular := h.Intercept
	h.Intercept = func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if ours, ok := f.paths[r.URL.Path]; ok {
			r.URL.Path = p.path + ours
		}
		if strings.HasSuffix(r.URL.Path, "/authorize") && r.Method == http.MethodGet {
			s.mu.Lock()
			s.last = make(map[string]string)
			for name, values := range r.URL.Query() {
				s.last[name] = strings.Join(values, " ")
			}
			s.mu.Unlock()
		}
		if particular != nil {
			particular(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}
	h.EditDiscovery = func(metadata map[string]any) {
		for theirs, ours := range f.paths {
			for name, value := range metadata {
				if value == p.base+ours {
					metadata[name] = p.root() + theirs
				}
			}
		}
		for _, name := range append(f.lacks, "mtls_endpoint_aliases", "tls_client_certificate_bound_access_tokens",
			"require_signed_request_object") {
			delete(metadata, name)
		}
		maps.Copy(metadata, f.metadata)
	}
	return h
}

// modern is metadata that none of the large services had when this was written.
var modern = []string{
	"pushed_authorization_request_endpoint", "require_pushed_authorization_requests",
	"authorization_response_iss_parameter_supported",
	"dpop_signing_alg_values_supported", "prompt_values_supported", "acr_values_supported",
}

// Profiles are the available profiles.
var Profiles = []Profile{
	{
		Name: "auth0", IssuerPath: "/",
		config: func(c *Config) { c.RefreshGrace = 10 * time.Second }, // "rotation overlap"
		paths: map[string]string{
			"/oauth/token": "/token", "/.well-known/jwks.json": "/jwks", "/oidc/logout": "/logout",
			"/oauth/revoke": "/revoke",
		},
		lacks: modern,
		hooks: func(p *Provider, seen *seen) Hooks {
			return Hooks{
				Intercept: noAccessTokenRevocation("unsupported_token_type"),
				EditAccessToken: func(header, claims map[string]any) {
					header["typ"] = "JWT"
					claims["azp"] = claims["client_id"]
					delete(claims, "client_id")
					claims["aud"] = []any{seen.get("audience"), "userinfo"}
				},
				SignAccessToken: func(header, claims map[string]any) (string, error) {
					if seen.get("audience") == "" {
						return rand.Text(), nil // opaque: for userinfo only
					}
					return p.Sign(header, claims)
				},
			}
		},
	},
	{
		Name: "okta", IssuerPath: "/oauth2/default",
		config: func(c *Config) { c.RequireDPoPNonce, c.RefreshGrace = true, 30*time.Second },
		paths: map[string]string{
			"/oauth2/default/v1/authorize": "/authorize", "/oauth2/default/v1/token": "/token",
			"/oauth2/default/v1/keys": "/jwks", "/oauth2/default/v1/par": "/par",
			"/oauth2/default/v1/userinfo": "/userinfo", "/oauth2/default/v1/logout": "/logout",
			"/oauth2/default/v1/revoke": "/revoke",
		},
		lacks: []string{"authorization_response_iss_parameter_supported"},
		hooks: func(*Provider, *seen) Hooks {
			return Hooks{
				EditAccessToken: func(header, claims map[string]any) {
					delete(header, "typ")
					scope, _ := claims["scope"].(string)
					claims["scp"], claims["cid"], claims["ver"] = strings.Fields(scope), claims["client_id"], 1
					delete(claims, "scope")
					delete(claims, "client_id")
				},
				EditIDToken: func(header, claims map[string]any) {
					delete(header, "typ")
					claims["ver"], claims["idp"], claims["amr"] = 1, "00o1", []string{"pwd"}
					delete(claims, "email") // only in userinfo if there is an access token
					delete(claims, "email_verified")
				},
			}
		},
	},
	{
		Name: "entra", IssuerPath: "/tenant/v2.0",
		config: func(c *Config) { c.RefreshGrace = time.Hour }, // replaced refresh tokens stay valid
		paths: map[string]string{
			"/tenant/oauth2/v2.0/authorize": "/authorize", "/tenant/oauth2/v2.0/token": "/token",
			"/tenant/discovery/v2.0/keys": "/jwks", "/tenant/oauth2/v2.0/logout": "/logout",
		},
		lacks: append(
			slices.Clone(modern),
			"revocation_endpoint",
			"backchannel_logout_supported",
			"backchannel_logout_session_supported",
		),
		metadata: map[string]any{
			"frontchannel_logout_supported": true, "http_logout_supported": true, "tenant_region_scope": "EU",
			"cloud_instance_name": "microsoftonline.com",
		},
		hooks: func(*Provider, *seen) Hooks {
			return Hooks{
				Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if strings.HasSuffix(r.URL.Path, "/token") {
						apis := make(map[string]bool)
						for scope := range strings.FieldsSeq(r.PostFormValue("scope")) {
							if at := strings.LastIndex(scope, "/"); at > 0 {
								apis[scope[:at]] = true
							}
						}
						switch grant := r.PostFormValue("grant_type"); {
						case grant == "authorization_code" && r.PostFormValue("scope") == "":
							writeJSON(
								w,
								http.StatusBadRequest,
								map[string]any{
									"error": "invalid_request",
									"error_description": "AADSTS28003: Provided value for the input parameter scope " +
										"cannot be empty.",
									"error_codes": []int{28003},
								},
							)
							return
						case len(apis) > 1:
							writeJSON(
								w,
								http.StatusBadRequest,
								map[string]any{
									"error":             "invalid_scope",
									"error_description": "AADSTS28000: the scope contains more than one resource.",
									"error_codes":       []int{28000},
								},
							)
							return
						}
					}
					next.ServeHTTP(w, r)
				},
				EditAccessToken: func(header, claims map[string]any) {
					header["typ"] = "JWT"
					scope, _ := claims["scope"].(string)
					for s := range strings.FieldsSeq(scope) {
						if at := strings.LastIndex(s, "/"); at > 0 {
							claims["aud"], claims["scp"] = s[:at], s[at+1:]
						}
					}
					delete(claims, "scope")
				},
				EditIDToken: func(_, claims map[string]any) {
					claims["ver"], claims["tid"], claims["oid"], claims["uti"], claims["rh"] = "2.0", "tenant",
						rand.Text(), rand.Text(), "0."
					delete(claims, "sid") // it is an optional claim
					delete(claims, "at_hash")
					delete(claims, "auth_time")
					delete(claims, "acr")
				},
				EditTokenResponse: func(_ string, status int, body map[string]any) {
					if status == http.StatusOK {
						body["ext_expires_in"] = body["expires_in"]
					}
				},
			}
		},
	},
	{
		Name: "google", IssuerPath: "",
		paths: map[string]string{
			"/o/oauth2/v2/auth": "/authorize", "/token": "/token", "/oauth2/v3/certs": "/jwks",
			"/v1/userinfo": "/userinfo", "/revoke": "/revoke",
		},
		lacks: append(
			slices.Clone(modern),
			"end_session_endpoint",
			"backchannel_logout_supported",
			"backchannel_logout_session_supported",
		),
		hooks: func(_ *Provider, seen *seen) Hooks {
			return Hooks{
				Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if strings.HasSuffix(r.URL.Path, "/authorize") &&
						strings.Contains(r.URL.Query().Get("scope"), "offline_access") {
						http.Error(w, "Error 400: invalid_scope", http.StatusBadRequest)
						return
					}
					next.ServeHTTP(w, r)
				},
				KeepRefreshTokens: true,
				SignAccessToken:   func(_, _ map[string]any) (string, error) { return "ya29." + rand.Text(), nil },
				EditIDToken: func(_, claims map[string]any) {
					claims["azp"] = claims["aud"]
					for _, name := range []string{"sid", "acr", "auth_time"} {
						delete(claims, name)
					}
				},
				EditTokenResponse: func(grant string, status int, body map[string]any) {
					if status != http.StatusOK {
						return
					}
					if grant == "authorization_code" &&
						(seen.get("access_type") != "offline" || !strings.Contains(seen.get("prompt"), "consent")) {
						delete(body, "refresh_token")
					}
				},
			}
		},
	},
	{
		Name: "cognito", IssuerPath: "/eu-central-1_pool",
		paths: map[string]string{
			"/oauth2/authorize": "/authorize", "/oauth2/token": "/token", "/oauth2/userInfo": "/userinfo",
			"/oauth2/revoke": "/revoke", "/eu-central-1_pool/.well-known/jwks.json": "/jwks",
		},
		lacks: append(
			slices.Clone(modern),
			"end_session_endpoint",
			"backchannel_logout_supported",
			"backchannel_logout_session_supported",
		),
		hooks: func(*Provider, *seen) Hooks {
			return Hooks{
				Intercept: func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if r.URL.Path == "/logout" {
						q := r.URL.Query()
						if q.Get("client_id") == "" || q.Get("logout_uri") == "" {
							http.Error(w, "Required parameter missing", http.StatusBadRequest)
							return
						}
						http.Redirect(w, r, q.Get("logout_uri"), http.StatusFound) // without the state
						return
					}
					noAccessTokenRevocation("unsupported_token_type")(w, r, next)
				},
				KeepRefreshTokens: true,
				EditAccessToken: func(header, claims map[string]any) {
					delete(header, "typ")
					claims["token_use"], claims["username"] = "access", claims["sub"]
					delete(claims, "aud")
					delete(claims, "sid")
				},
				EditIDToken: func(header, claims map[string]any) {
					delete(header, "typ")
					claims["token_use"], claims["cognito:username"], claims["origin_jti"] = "id", claims["sub"],
						rand.Text()
					delete(claims, "sid")
					delete(claims, "acr")
				},
			}
		},
	},
}

// noAccessTokenRevocation refuses to revoke access tokens (RFC 7009 2.2.1).
func noAccessTokenRevocation(code string) func(http.ResponseWriter, *http.Request, http.Handler) {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.HasSuffix(r.URL.Path, "/revoke") && r.PostFormValue("token_type_hint") == "access_token" {
			writeJSON(w, http.StatusBadRequest, map[string]any{"error": code})
			return
		}
		next.ServeHTTP(w, r)
	}
}
