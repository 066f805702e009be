package bff

import "time"

// sessionExpiry reads when the provider ends the session: session_expiry of an
// ID token (OpenID Connect Enterprise Extensions). What is not a date is taken
// for absent.
func sessionExpiry(claims map[string]any) time.Time {
	end, err := timeClaim(claims, "session_expiry")
	if err != nil || end.Unix() <= 0 {
		return time.Time{}
	}
	return end
}
