package web

import (
	"bytes"
	"compress/gzip"
	"embed"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"
)

//go:embed client/client.js
var clientJS []byte

//go:embed client/client.d.ts
var clientTypes []byte

//go:embed client/client.js client/react.js client/vue.js client/svelte.js client/angular.js client/tanstack.js
//go:embed client/notice.js client/vite.js client/testing.js client/*.d.ts
var clientFiles embed.FS

// ClientFiles returns the files of the npm package of the browser client:
// client.js, client.d.ts and those for a framework or tool, such as react.js.
func ClientFiles() fs.FS {
	files, err := fs.Sub(clientFiles, "client")
	if err != nil {
		panic(err) // the embedded directory has another name
	}
	return files
}

// clientFile is a file of the browser client as the broker serves it.
type clientFile struct {
	contentType       string
	plain, compressed []byte
}

func newClientFile(contentType string, b []byte) clientFile {
	var compressed bytes.Buffer
	w, _ := gzip.NewWriterLevel(&compressed, gzip.BestCompression) // the level is valid
	_, _ = w.Write(b)                                              // a Buffer does not fail
	_ = w.Close()
	return clientFile{contentType, b, compressed.Bytes()}
}

// Client serves the browser client, an ES module, for any path, and its types
// for paths that end in .d.ts. Browsers revalidate it for each page, so that
// page and broker have the same version.
func Client() http.Handler {
	// Where the file is served from, it is beside the endpoints.
	js := newClientFile(contentTypes[".js"], bytes.Replace(clientJS, []byte(`const served = "";`),
		[]byte("const served = import.meta.url;"), 1))
	types := newClientFile(contentTypes[".txt"], clientTypes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			refuse(w, http.StatusMethodNotAllowed)
			return
		}
		file := js
		if strings.HasSuffix(r.URL.Path, ".d.ts") {
			file = types
		}
		body := file.plain
		h.Set("Vary", "Accept-Encoding")
		if parseAcceptEncoding(r.Header.Values("Accept-Encoding")).of("gzip") > 0 {
			body = file.compressed
			h.Set("Content-Encoding", "gzip")
			if r.Header.Get("If-Match") == "" { // ServeContent omits it for encoded content
				h.Set("Content-Length", strconv.Itoa(len(body)))
			}
		}
		h.Set("Content-Type", file.contentType)
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", etagOf(body))
		http.ServeContent(w, withUsableRange(r), "", time.Time{}, bytes.NewReader(body))
	})
}
