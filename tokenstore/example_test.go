package tokenstore_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/cloakroom-bff/cloakroom/tokenstore"
)

// The zero Memory is a store for one process.
func Example() {
	ctx := context.Background()
	store := new(tokenstore.Memory)
	if _, err := store.Create(ctx, "session:1", []byte("sealed"), time.Hour); err != nil {
		log.Fatal(err)
	}
	value, _, found, err := store.Get(ctx, "session:1")
	fmt.Println(string(value), found, err)
	// Output: sealed true <nil>
}

// NewRedis does not connect yet: Ping does.
func ExampleNewRedis() {
	store, err := tokenstore.NewRedis(tokenstore.RedisConfig{URL: "redis://localhost:6379/0"})
	if err != nil {
		log.Fatal(err) // the URL is invalid
	}
	defer store.Close()
	if err := store.Ping(context.Background()); err != nil {
		log.Print(err) // with a hint what to do
	}
}
