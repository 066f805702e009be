// Orders is an API that accepts access tokens of one issuer. Package bearer
// verifies them.
package main

import (
	"encoding/json"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/cloakroom-bff/cloakroom/bearer"
)

func main() {
	verifier, err := bearer.NewVerifier(bearer.Config{Issuer: os.Getenv("ISSUER"), Audience: os.Getenv("AUDIENCE")})
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("GET /orders", verifier.Handler(bearer.Require("orders:read")(http.HandlerFunc(listOrders))))

	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT")) // behind a TLS proxy
	if err != nil {
		log.Fatal(err)
	}
	log.Print("listening on ", listener.Addr())
	log.Fatal((&http.Server{ReadHeaderTimeout: 10 * time.Second}).Serve(listener))
}

func listOrders(w http.ResponseWriter, r *http.Request) {
	token, _ := bearer.FromContext(r.Context())
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(map[string]any{"sub": token.Subject, "orders": []string{}})
}
