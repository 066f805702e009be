package bearer_test

import (
	"fmt"
	"log"
	"log/slog"
	"net/http"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

func Example() {
	verifier, err := bearer.NewVerifier(bearer.Config{
		Issuer:     "https://id.example", // exactly as in iss
		Audience:   "orders",             // the identifier of this API
		HTTPClient: exampleIssuer(),      // an issuer for this example
		Logger:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}

	listOrders := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := bearer.FromContext(r.Context())
		fmt.Printf("orders of %s\n", token.Subject)
	})
	mux := http.NewServeMux()
	mux.Handle("GET /orders", verifier.Handler(bearer.Require("orders:read")(listOrders)))
	mux.Handle("DELETE /orders", verifier.Handler(bearer.Require("orders:admin")(listOrders)))

	call(mux, "GET", "")
	call(mux, "GET", aliceToken())
	call(mux, "DELETE", aliceToken())
	// Output:
	// GET 401 Unauthorized
	// orders of alice
	// GET 200 OK
	// DELETE 403 Forbidden
}

func ExampleClaims_Decode() {
	token := &bearer.Token{Claims: bearer.Claims(`{"sub": "alice", "tenant": "acme"}`)}
	var own struct {
		Tenant string `json:"tenant"`
	}
	if err := token.Claims.Decode(&own); err != nil {
		log.Fatal(err)
	}
	fmt.Println(own.Tenant)
	// Output: acme
}
