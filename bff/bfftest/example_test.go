package bfftest_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/cloakroom-bff/cloakroom/bearer"
	"github.com/cloakroom-bff/cloakroom/bff"
	"github.com/cloakroom-bff/cloakroom/bff/bfftest"
)

// A test of an app with one API. The API verifies the access token that the
// broker adds to the request.
func Example() {
	t := newT() // in a test, its *testing.T
	defer t.end()

	app := bfftest.NewServer(t, func(cfg *bff.Config) {
		verifier, err := bearer.NewVerifier(bearer.Config{
			Issuer:   cfg.Provider.Issuer,
			Audience: "api",
		})
		if err != nil {
			t.Fatal(err)
		}
		api := httptest.NewServer(verifier.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			token, _ := bearer.FromContext(r.Context())
			fmt.Fprintf(w, "orders of %s", token.Subject)
		})))
		t.Cleanup(api.Close)
		cfg.Routes = []bff.Route{{Path: "/api/", Upstream: []string{api.URL}, Token: bff.TokenUser}}
	})

	browser := bfftest.NewBrowser(t, app.URL)
	response := browser.Fetch("GET", "/api/orders")
	fmt.Println(response.StatusCode, response.Code())

	browser.SignIn("alice", "return_to=/orders")
	response = browser.Fetch("GET", "/api/orders")
	fmt.Println(response.StatusCode, response.Text)

	// The script never sees a token.
	app.Provider.CheckLeaks(t, "responses to the browser", browser.Received())
	// Output:
	// 401 not_signed_in
	// 200 orders of alice
}
