package devtools

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/devidp"
	"github.com/cloakroom-bff/cloakroom/internal/pagetext"
)

// signInRequest is the body of POST /bff/dev/sign-in. It has either User or
// Claims.
type signInRequest struct {
	User     string          `json:"user"`   // the sub of one of the provider's users
	Claims   json.RawMessage `json:"claims"` // of any user, with sub
	ReturnTo string          `json:"return_to"`
}

// signIn responds with the path of a login that signs in a user without the
// picker: as JSON to a request with JSON, by a redirect to a form.
func (t *Tools) signIn(w http.ResponseWriter, r *http.Request) {
	mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	isJSON := mediaType == "application/json"
	path, err := t.loginPath(r, isJSON)
	switch {
	case err != nil && isJSON:
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]any{
			"title": "The sign-in was refused", "status": http.StatusBadRequest, "detail": err.Error(),
		})
	case err != nil:
		refused := notice{Text: pagetext.Text{Key: "The sign-in was refused: %s.", Args: []any{err}}, Bad: true}
		t.writePage(w, r, http.StatusBadRequest, &refused)
	case isJSON:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]string{"login_url": path})
	default:
		http.Redirect(w, r, path, http.StatusSeeOther)
	}
}

// loginPath returns the path of the login that a request asks for.
func (t *Tools) loginPath(r *http.Request, isJSON bool) (string, error) {
	want, err := readSignIn(r, isJSON)
	if err != nil {
		return "", err
	}
	var user devidp.User
	switch {
	case len(want.Claims) > 0 && want.User != "":
		return "", errors.New("send either user or claims")
	case len(want.Claims) > 0:
		if user, err = devidp.UserFromClaims(want.Claims, t.provider.ACRValues()); err != nil {
			return "", fmt.Errorf("claims: %w", err)
		}
	default:
		if user, err = t.provider.User(want.User); err != nil {
			return "", err
		}
	}
	hint, err := t.provider.SignInOnce(user)
	if err != nil {
		return "", err
	}
	q := url.Values{"login_hint": {hint}}
	if want.ReturnTo != "" {
		q.Set("return_to", want.ReturnTo)
	}
	return t.cfg.Base + t.cfg.Prefix + "/login?" + q.Encode(), nil
}

// readSignIn reads the body of a request.
func readSignIn(r *http.Request, isJSON bool) (want signInRequest, err error) {
	if isJSON {
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&want); err != nil {
			return want, fmt.Errorf(`the body is not JSON such as {"user": "alice"}: %w`, err)
		}
		return want, nil
	}
	if err := r.ParseForm(); err != nil {
		return want, fmt.Errorf("the form cannot be read: %w", err)
	}
	want.User, want.ReturnTo = r.PostForm.Get("user"), r.PostForm.Get("return_to")
	if claims := strings.TrimSpace(r.PostForm.Get("claims")); claims != "" && want.User == "" {
		want.Claims = json.RawMessage(claims)
	}
	return want, nil
}
