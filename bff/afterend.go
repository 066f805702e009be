package bff

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
	"github.com/cloakroom-bff/cloakroom/session"
)

// PromptAfterEnd is what a login asks the provider for if another person may
// sit in front of the browser than before: the parameter prompt (OpenID Connect
// Core, section 3.1.2.1).
type PromptAfterEnd string

const (
	// PromptLogin: the user has to authenticate.
	PromptLogin PromptAfterEnd = "login"
	// PromptSelectAccount: the user has to choose an account. It is for
	// providers that do not support PromptLogin.
	PromptSelectAccount PromptAfterEnd = "select_account"
	// PromptByProvider: the provider decides. If it still has a session,
	// another person is signed in as the user, without interaction.
	PromptByProvider PromptAfterEnd = "provider"
)

func (p PromptAfterEnd) check() error {
	if p == PromptLogin || p == PromptSelectAccount || p == PromptByProvider {
		return nil
	}
	return configerr.New("PromptAfterEnd", p, fmt.Errorf("%q is none of login, select_account, provider", string(p)))
}

// promptAfterEnd returns the prompt that a login needs because of the session
// of the request's cookie, which has ended. It is empty if none is needed.
//
// A session that ended for these reasons was not ended in this browser, and the
// provider may not know that it has. Without a prompt the provider would sign
// in the person who sits there. After a logout at the provider, or if it
// refuses the refresh token, the provider decides by itself.
func (a *app) promptAfterEnd(r *http.Request) (string, error) {
	if a.afterEnd == PromptByProvider {
		return "", nil
	}
	ticket, _ := a.cookie.Read(r) // the zero Ticket without a cookie
	reason, err := a.sessions.EndReason(r.Context(), ticket)
	if err != nil {
		return "", err
	}
	switch reason {
	case session.ReasonIdle, session.ReasonRevoked, session.ReasonLimit:
		return string(a.afterEnd), nil
	}
	return "", nil
}

// addPrompt adds a value to those of the parameter prompt, unless they have it
// or a stronger one. An empty value adds nothing.
func addPrompt(prompts, value string) string {
	values := strings.Fields(prompts)
	if value == "" || slices.Contains(values, value) || slices.Contains(values, string(PromptLogin)) {
		return prompts
	}
	values = slices.DeleteFunc(values, func(prompt string) bool { return prompt == "none" })
	return strings.Join(append(values, value), " ")
}
