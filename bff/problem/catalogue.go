package problem

import "time"

const (
	aFewSeconds   = "Try again in a few seconds."
	goToLoginURL  = "Send the browser to login_url as a top-level navigation."
	nothingChange = "Nothing has changed."
	tellOperator  = "Try again. If it happens again, tell the people who run this app."
)

// Problems of a request, whatever it is for.
var (
	AmbiguousHost = define(&Problem{
		Status: 400, Code: "ambiguous_host", Title: "The request names its host twice",
		Detail: "Send only the path in the request line.",
		When: "A request has an absolute URL as its target: in the request line, or in HTTP/2 as `:path`. Or " +
			"an HTTP/2 request has a `host` field that differs from `:authority`, or several.",
	})
	AmbiguousPath = define(&Problem{
		Status: 400, Code: "ambiguous_path", Title: "The path is ambiguous",
		Detail: "Send the path without encoded dots, slashes, backslashes or empty segments.",
		When:   "Two servers could read the path as two different paths, so that it could lie under another route.",
	})
	BadRequest = define(&Problem{
		Status: 400, Code: "bad_request", Title: "The request cannot be forwarded",
		Detail: "The target or a header has a space or a control character that is not allowed.",
		When:   "The request cannot be written as a valid HTTP request to the upstream.",
	})
	BadParameter = define(&Problem{
		Status: 400, Code: "bad_parameter", Title: "A parameter of the request is not valid",
		When: "`warn` of `/bff/session/events`, or `offset` of `/bff/sessions`, is not a number in its range.",
	})
	BadBody = define(&Problem{
		Status: 400, Code: "bad_body", Title: "The request body cannot be read",
		When: "The body is malformed or ends too early.",
	})
	WrongHost = define(&Problem{
		Status: 421, Code: "wrong_host", Title: "This host is not served here",
		Detail: "The Host header must be that of server.public_url.",
		When: "`Host` is not that of `server.public_url`: a proxy in front replaces it, or the name is " +
			"not the app's.",
	})
	NotFound = define(&Problem{
		Status: 404, Code: "not_found", Title: "Not found",
		When: "No endpoint, route or file has this path.",
	})
	MethodNotAllowed = define(&Problem{
		Status: 405, Code: "method_not_allowed", Title: "Method not allowed",
		When: "The endpoint has other methods. TRACE and CONNECT are never allowed.",
	})
	BodyTooSlow = define(&Problem{
		Status: 408, Code: "body_too_slow", Title: "The request took too long to arrive",
		When: "The client sends its body more slowly than `server.limits.body_min_rate`.",
	})
	BodyTooLarge = define(&Problem{
		Status: 413, Code: "body_too_large", Title: "The request body is too large",
		When: "The body is larger than the route's `max_body`, or than an endpoint reads.",
	})
	TooManyRequests = define(&Problem{
		Status: 429, Code: "too_many_requests", Title: "Too many requests",
		Detail: "Wait a moment, then try again.",
		When: "Too many logins or failed code exchanges from one client address (`server.limits.logins`), " +
			"or too many calls of `POST /bff/session/refresh` in one session. `Retry-After` has the " +
			"seconds to wait.",
	})
	TooManyStreams = define(&Problem{
		Status: 429, Code: "too_many_streams", Title: "The session has too many event streams open",
		Detail: "Close some, or share one between tabs.", RetryAfter: 30 * time.Second,
		When: "A session has 100 streams of `GET /bff/session/events` open on one replica.",
	})
	Internal = define(&Problem{
		Status: 500, Code: "internal", Title: "Internal error",
		When: "A fault of Cloakroom or its configuration. The log has the cause, with the request id.",
	})
)

// Problems of a request that needs a session.
var (
	NotSignedIn = define(&Problem{
		Status: 401, Code: "not_signed_in", Title: "Not signed in", SignIn: true,
		When: "There is no session: no cookie, an expired or ended session, or a cookie of another app.",
	})
	InsufficientUserAuthentication = define(&Problem{
		Status: 401, Code: "insufficient_user_authentication",
		Title: "A stronger or newer sign-in is needed", SignIn: true,
		Detail: goToLoginURL,
		When: "The route requires an `acr` or `max_age` that the session does not have (RFC 9470), " +
			"or the provider requires the user before it issues tokens.",
	})
	NavigationOnly = define(&Problem{
		Status: 401, Code: "navigation_only", Title: "This endpoint must be opened by the browser", SignIn: true,
		Detail: goToLoginURL + " A script or a prefetch cannot sign in.",
		When:   "A script, a prefetch or a subresource requested an endpoint that is for navigation only.",
	})
	CSRF = define(&Problem{
		Status: 403, Code: "csrf", Title: "The request may come from another site",
		Detail: "Send the header X-CSRF: 1 from a page of this origin.",
		When: "The request lacks the proof that the endpoint or the route's `csrf` requires, such as " +
			"`X-CSRF: 1`, or the browser reports that a page of another origin sent it.",
	})
	ServiceWorker = define(&Problem{
		Status: 403, Code: "service_worker", Title: "An API cannot be a service worker",
		Detail: "Serve the script from the app's own files.",
		When:   "A page registers a service worker whose script is under a route.",
	})
	InsufficientScope = define(&Problem{
		Status: 403, Code: "insufficient_scope", Title: "The session lacks a scope that this route requires",
		When: "The access token does not have the route's scopes.",
	})
	Forbidden = define(&Problem{
		Status: 403, Code: "forbidden", Title: "Forbidden",
		When: "The user's claims do not meet what the route requires.",
	})
	TokenInQuery = define(&Problem{
		Status: 400, Code: "token_in_query", Title: "The query has an access_token",
		Detail: "Leave it out: the access token is attached by the proxy.",
		When:   "The query has `access_token`, which an API could prefer to the session's (RFC 6750, section 2.3).",
	})
	TwoCredentials = define(&Problem{
		Status: 400, Code: "two_credentials", Title: "The request has a session and an access token",
		Detail: "Send only one of them.",
		When:   "A request has a session cookie and a bearer token of its own.",
	})
	UpgradeRefused = define(&Problem{
		Status: 400, Code: "upgrade_refused", Title: "Only upgrades to WebSocket are supported",
		When: "The WebSocket handshake is malformed, or names another protocol too.",
	})
)

// Problems of what Cloakroom depends on.
var (
	UpstreamFailed = define(&Problem{
		Status: 502, Code: "upstream_failed", Title: "The API failed to respond",
		When: "No connection to the upstream can be made, its connection ended, or its response is malformed.",
	})
	UpstreamUnavailable = define(&Problem{
		Status: 503, Code: "upstream_unavailable", Title: "The API is temporarily unavailable",
		Detail: aFewSeconds, RetryAfter: time.Second,
		When: "The route has several `upstream` URLs, and none accepts a connection.",
	})
	UpstreamTimeout = define(&Problem{
		Status: 504, Code: "upstream_timeout", Title: "The API did not respond in time",
		When: "The upstream exceeded one of the route's `timeouts`, or reads the body too slowly.",
	})
	FrontendUnavailable = define(&Problem{
		Status: 503, Code: "frontend_unavailable", Title: "The app is temporarily unavailable",
		Detail: aFewSeconds, RetryAfter: time.Second,
		When: "The server of `frontend.url` does not respond, or its response is malformed; or a CDN has the " +
			"status 5xx. Or `frontend.dir` has no index.html, as during a deploy.",
	})
	StoreUnavailable = define(&Problem{
		Status: 503, Code: "store_unavailable", Title: "Sessions are temporarily unavailable",
		Detail: "No session has ended. " + aFewSeconds, RetryAfter: 2 * time.Second,
		When: "Redis does not respond, or refuses a command: it is full, a replica, or cannot save. " +
			"Cookies are kept, and sessions continue when it works again.",
	})
	ProviderUnavailable = define(&Problem{
		Status: 503, Code: "provider_unavailable", Title: "The sign-in service is temporarily unavailable",
		Detail: aFewSeconds, RetryAfter: 5 * time.Second,
		When: "The provider does not respond within `oidc.wait`, or with an error. Sessions are kept.",
	})
)

// Problems of signing in and out.
var (
	BadLoginParameter = define(&Problem{
		Status: 400, Code: "bad_login_parameter", Title: "The sign-in link is not valid",
		Detail: "One of its parameters has an unknown value. Start again from the app.",
		When:   "A parameter of `/bff/login` has a value that is not allowed.",
	})
	BadCallback = define(&Problem{
		Status: 400, Code: "bad_callback", Title: "This sign-in cannot be completed",
		Detail: "It was started in another browser, too long ago, or not at all; or the browser refuses cookies. " +
			nothingChange + " Start again from here.",
		When: "The callback has no `state`, or none of an attempt of this browser.",
	})
	LoginCancelled = define(&Problem{
		Status: 403, Code: "login_cancelled", Title: "You did not sign in",
		Detail: "The sign-in was cancelled, or this account may not use the app. " + nothingChange,
		When:   "The provider responded with `access_denied` or a similar error.",
	})
	LoginRefused = define(&Problem{
		Status: 502, Code: "login_refused", Title: "The sign-in service refused",
		Detail: "It did not complete the sign-in. " + nothingChange + " " + tellOperator,
		When: "The provider responded with an error that the user cannot change: " +
			"a wrong client secret, scope or redirect URI. The log has its code.",
	})
	LoginInvalid = define(&Problem{
		Status: 502, Code: "login_invalid", Title: "The sign-in could not be verified",
		Detail: "The response of the sign-in service is not valid. " + nothingChange + " " + tellOperator,
		When:   "The provider's response fails a check: signature, issuer, audience, nonce, time, or its form.",
	})
	LoginTooWeak = define(&Problem{
		Status: 403, Code: "login_too_weak", Title: "A stronger sign-in is needed",
		Detail: "The sign-in service did not confirm the requested way of signing in. " + nothingChange,
		When:   "The ID token's `acr` or `auth_time` is not what the login requested.",
	})
	SignedOutMeanwhile = define(&Problem{
		Status: 403, Code: "signed_out_meanwhile", Title: "You were signed out while signing in",
		Detail: "The sign-in service ended your session there before the sign-in here was complete. Start again.",
		When:   "A logout token or `session_expiry` ended the provider's session before the login was complete.",
	})
	OtherAccount = define(&Problem{
		Status: 403, Code: "other_account", Title: "You are signed in with another account",
		Detail: "Another site started this sign-in, and it is for another account than yours. " +
			"You are still signed in. Sign out first if you want to change.",
		When: "Another site started a login for another user than the one who is signed in.",
	})
	BadLogoutToken = define(&Problem{
		Status: 400, Code: "bad_logout_token", Title: "The logout token is not valid",
		When: "A back-channel logout request fails a check (OpenID Connect Back-Channel Logout 1.0, section 2.6).",
	})
	BadFrontchannelLogout = define(&Problem{
		Status: 400, Code: "bad_frontchannel_logout", Title: "The logout request has no matching iss and sid",
		Detail: "It needs the iss and sid of this browser's session, in a frame whose page is of the same site.",
		When:   "A front-channel logout request does not name the session of this browser.",
	})
)
