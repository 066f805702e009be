package web_test

import (
	"fmt"
	"log"
	"net/http/httptest"
	"testing/fstest"

	"github.com/cloakroom-bff/cloakroom/web"
)

// A path inside the app gets index.html.
func ExampleNew() {
	app, err := web.New(web.Config{FS: fstest.MapFS{
		"index.html": {Data: []byte("<!doctype html><title>Shop</title>")},
	}})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/orders/42", nil)
	r.Header.Set("Accept", "text/html")
	w := httptest.NewRecorder()
	app.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Body)
	// Output: 200 <!doctype html><title>Shop</title>
}
