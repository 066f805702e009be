// Package web serves a single-page app: its files with the caching and the security headers they should have, and its index.html for
// every address inside the app, so that a reload or a deep link works. It also holds the browser client and the sample app.
//
// What is in the directory is what is served, a new deploy with the next load: a
// Handler keeps no content between two requests, only digests of it.
package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

// Config says what to serve, and what the app's pages may do. Exactly one of Dir and FS is needed; the rest can be left out.
type Config struct {
	// Dir is the directory that the app's build writes to, with an index.html in it. A symbolic link inside it that leads out of it is
	// not followed. Dir itself may be one, or be replaced as a whole, while the Handler serves.
	Dir string
	// FS holds the app instead of Dir.
	FS fs.FS

	// FormAction are origins besides the app's own that a form may lead to. Browsers apply form-action to the redirects after a form
	// post, so the provider's origin has to be here for a logout by form to arrive there.
	FormAction []string
	// Sources are what else a directive of the Content-Security-Policy lets in:
	//
	//	"connect-src": {"https://errors.example.com"}, "img-src": {"https://tiles.example.com", "blob:"}
	//
	// The directives are script-src, style-src, img-src, font-src, connect-src, frame-src, media-src and worker-src.
	Sources map[string][]string
	// Permissions are the browser features that the app uses, as the header Permissions-Policy names them: "geolocation". The others
	// that ask the user for something are denied.
	Permissions []string
	// TrustedTypes makes browsers refuse strings where they would be run as script. An app has to be written for it, so it is off.
	TrustedTypes bool

	// HTTPS says that browsers reach the app by https alone: they are told to remember it (RFC 6797), for subdomains as well.
	HTTPS bool
	// SourceMaps serves *.map files. They hold the app's source code.
	SourceMaps bool

	Logger *slog.Logger // nil means slog.Default()
}

// Handler serves an app. Use New.
type Handler struct {
	files      fs.FS
	policy     policy
	headers    map[string]string // on every answer
	sourceMaps bool
	digests    digests
	log        *slog.Logger
}

const index = "index.html"

// New returns a Handler for cfg. It looks for the app's index.html and does no other I/O. The error joins every mistake in cfg, one
// line each.
func New(cfg Config) (*Handler, error) {
	h := &Handler{files: cfg.FS, sourceMaps: cfg.SourceMaps, log: cfg.Logger}
	if h.log == nil {
		h.log = slog.Default()
	}
	var err, filesErr error
	switch {
	case (cfg.Dir == "") == (cfg.FS == nil):
		filesErr = errors.New("exactly one of Dir and FS has to be there")
	case cfg.Dir != "":
		h.files = directory(cfg.Dir)
		filesErr = checkDir(cfg.Dir)
	default:
		_, filesErr = fs.Stat(cfg.FS, index)
	}
	h.policy, err = newPolicy(cfg)
	permissions, permissionsErr := permissionsPolicy(cfg.Permissions)
	if err := errors.Join(filesErr, err, permissionsErr); err != nil {
		return nil, err
	}
	h.headers = map[string]string{
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY", // for browsers that do not know frame-ancestors
		"Referrer-Policy":              "no-referrer",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Permissions-Policy":           permissions,
	}
	if cfg.HTTPS { // RFC 6797 7.2: never over plain http
		h.headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
	}
	return h, nil
}

// checkDir says what is wrong with a directory, and how to mend it.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%q does not exist: build the app first, or name the directory that its build writes to", dir)
	case err != nil:
		return fmt.Errorf("%q cannot be read: %w", dir, err)
	case !info.IsDir():
		return fmt.Errorf("%q is not a directory", dir)
	}
	f, _, err := open(directory(dir), index)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%q: index.html cannot be read: %w", dir, err)
	}
	if inner, _ := fs.Glob(os.DirFS(dir), "*/"+index); len(inner) > 0 {
		return fmt.Errorf("%q has no index.html, but %q has: is that what you mean?", dir, path.Join(dir, path.Dir(inner[0])))
	}
	return fmt.Errorf("%q has no index.html: build the app first, or name the directory that its build writes to", dir)
}

// directory is an fs.FS that opens its root anew for each file: a deploy may replace the directory, or the link that names it.
// os.Root keeps every path inside, symbolic links included.
type directory string

func (d directory) Open(name string) (fs.File, error) {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, err
	}
	defer root.Close() // the opened file outlives it
	return root.Open(name)
}

// open opens a regular file. Whatever is at the name but cannot be served, such as a directory or a link that leads out, does not
// exist; permission denied remains an error, for an operator has to know.
func open(files fs.FS, name string) (fs.File, fs.FileInfo, error) {
	f, err := files.Open(name)
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil, err
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w (%q is not a regular file)", fs.ErrNotExist, name)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// ServeHTTP answers with the file at the path, with index.html for a navigation inside the app, or with 404.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for name, value := range h.headers {
		w.Header().Set(name, value)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	if name == "" {
		name = index
	}
	if !h.public(strings.TrimSuffix(name, "/")) {
		refuse(w, http.StatusNotFound)
		return
	}
	err := fs.ErrNotExist
	if isFileName(name) {
		err = h.serveFile(w, r, name)
	}
	if errors.Is(err, fs.ErrNotExist) && name != index && navigates(r) && !isAsset(name) {
		name = index
		err = h.serveFile(w, r, index)
	}
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist) && name == index: // a deploy that is under way
		h.log.ErrorContext(r.Context(), "the app has no index.html", "err", err)
		w.Header().Set("Retry-After", "2")
		refuse(w, http.StatusServiceUnavailable)
	case errors.Is(err, fs.ErrNotExist):
		refuse(w, http.StatusNotFound)
	default:
		h.log.ErrorContext(r.Context(), "serve the app's file", "file", name, "err", err)
		refuse(w, http.StatusInternalServerError)
	}
}

// public says whether the world may ask for this path at all. Dotfiles are secrets of the build more often than not (.env, .git);
// /.well-known/ is made for the public (RFC 8615).
func (h *Handler) public(name string) bool {
	for i, segment := range strings.Split(name, "/") {
		if strings.HasPrefix(segment, ".") && !(i == 0 && segment == ".well-known") {
			return false
		}
	}
	plain := strings.ToLower(name)
	for _, e := range encodings {
		plain = strings.TrimSuffix(plain, e.suffix)
	}
	return h.sourceMaps || path.Ext(plain) != ".map"
}

// navigates says whether the browser is on its way to a page, as opposed to a script or a page that asks for a file.
func navigates(r *http.Request) bool {
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	return strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "text/html")
}

// isFileName reports whether a path can name a file. Others, with empty segments
// for example, can still be places in the app.
func isFileName(name string) bool {
	return fs.ValidPath(strings.TrimSuffix(name, "/")) && !strings.ContainsAny(name, "\\\x00")
}

// isAsset says whether a path names a file, not a place in the app: index.html in the stead of a missing script or image would be an
// error that is hard to read. /people/jane.doe is a place.
func isAsset(name string) bool {
	_, known := contentTypes[strings.ToLower(path.Ext(strings.TrimSuffix(name, "/")))]
	return known
}

// refuse answers with an error that no cache keeps: the file may be there after the next deploy.
func refuse(w http.ResponseWriter, status int) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	http.Error(w, http.StatusText(status), status)
}

// serveFile answers with a file, or returns an error before anything is written.
func (h *Handler) serveFile(w http.ResponseWriter, r *http.Request, name string) error {
	f, info, err := open(h.files, name)
	if err != nil {
		return err
	}
	defer f.Close()
	header := make(http.Header)
	header.Set("Content-Type", contentType(name))
	body, policy, err := h.read(name, f, info, strings.HasPrefix(header.Get("Content-Type"), "text/html"))
	if err != nil {
		return err
	}
	header.Set("Content-Security-Policy", policy)
	header.Set("Cache-Control", "no-cache")
	if hasContentHash(name) { // the name changes with the content (RFC 8246)
		header.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	for _, e := range encodings {
		sibling, siblingInfo, err := open(h.files, name+e.suffix)
		if err != nil {
			continue
		}
		defer sibling.Close()
		if info.ModTime().Sub(siblingInfo.ModTime()) > sameBuild {
			continue // it was left behind by an earlier deploy
		}
		header.Set("Vary", "Accept-Encoding") // also on the answer that is not encoded (RFC 9110 12.5.5)
		if header.Get("Content-Encoding") == "" && accepts(r, e.coding) {
			if body, _, err = h.read(name+e.suffix, sibling, siblingInfo, false); err != nil {
				return err
			}
			header.Set("Content-Encoding", e.coding)
		}
	}
	if body.etag != "" {
		header.Set("ETag", body.etag)
	}
	if header.Get("Content-Encoding") != "" && r.Header.Get("If-Match") == "" && r.Header.Get("If-Unmodified-Since") == "" {
		// ServeContent leaves it out for encoded content. With those two it may answer 412, which has no content.
		header.Set("Content-Length", strconv.FormatInt(body.size, 10))
	}
	for field, values := range header {
		w.Header()[field] = values
	}
	if strings.Count(strings.Join(r.Header["Range"], ","), ",") >= maxRanges {
		r = r.Clone(r.Context())
		r.Header.Del("Range") // a server may ignore it (RFC 9110 14.2)
	}
	// Without a time there is no Last-Modified: builds that can be reproduced give every file the same.
	http.ServeContent(w, r, "", time.Time{}, body)
	return nil
}

// encodings are the siblings that a build may write beside a file, best first.
var encodings = []struct{ coding, suffix string }{{"br", ".br"}, {"gzip", ".gz"}}

// sameBuild is how much older than its file a sibling may be. A copy of a build writes its files in any order.
const sameBuild = time.Minute

// accepts says whether the client takes a content coding (RFC 9110 12.5.3).
func accepts(r *http.Request, coding string) bool {
	accepted := false
	for item := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		name, parameter, _ := strings.Cut(item, ";")
		weight, weighted := strings.CutPrefix(strings.ToLower(strings.TrimSpace(parameter)), "q=")
		q, err := strconv.ParseFloat(weight, 64)
		takes := !weighted || err == nil && q > 0
		switch name = strings.TrimSpace(name); {
		case strings.EqualFold(name, coding):
			return takes
		case name == "*":
			accepted = takes
		}
	}
	return accepted
}

// content is a file's bytes and a validator for them.
type content struct {
	io.ReadSeeker
	size int64
	etag string // a quoted string, or empty
}

// maxHashed is the size up to which a file's content is hashed for its validator.
const maxHashed = 1 << 20

// maxRanges is how many ranges of a file one request may ask for. Each costs a
// part of the response with a header of its own.
const maxRanges = 16

// read returns the content of f and its Content-Security-Policy. A file above
// maxHashed is told apart by size and time, unless there is no time. A page is
// read whatever its size, for its policy names its scripts.
func (h *Handler) read(name string, f fs.File, info fs.FileInfo, page bool) (content, string, error) {
	seeker, seeks := f.(io.ReadSeeker)
	if known, ok := h.digests.get(name, info); ok && seeks {
		return content{seeker, info.Size(), known.etag}, known.policy, nil
	}
	if seeks && !page && info.Size() > maxHashed {
		c := content{ReadSeeker: seeker, size: info.Size()}
		if !info.ModTime().IsZero() {
			c.etag = fmt.Sprintf(`"%x-%x"`, info.Size(), info.ModTime().UnixNano())
		}
		return c, h.policy.forPage(nil), nil
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return content{}, "", err
	}
	computed := digest{etag: etagOf(b)}
	if page {
		computed.policy = h.policy.forPage(b)
	} else {
		computed.policy = h.policy.forPage(nil)
	}
	h.digests.put(name, info, computed)
	return content{bytes.NewReader(b), int64(len(b)), computed.etag}, computed.policy, nil
}

func etagOf(b []byte) string {
	sum := sha256.Sum256(b)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`
}

// contentTypes are the types of what apps are made of. They are here because what mime knows depends on the machine.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".htm": "text/html; charset=utf-8",
	".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8", ".cjs": "text/javascript; charset=utf-8",
	".css": "text/css; charset=utf-8", ".txt": "text/plain; charset=utf-8", ".csv": "text/csv; charset=utf-8",
	".json": "application/json", ".map": "application/json", ".webmanifest": "application/manifest+json",
	".xml": "application/xml", ".wasm": "application/wasm", ".pdf": "application/pdf",
	".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif",
	".webp": "image/webp", ".avif": "image/avif", ".ico": "image/x-icon", ".bmp": "image/bmp",
	".woff": "font/woff", ".woff2": "font/woff2", ".ttf": "font/ttf", ".otf": "font/otf", ".eot": "application/vnd.ms-fontobject",
	".mp3": "audio/mpeg", ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp4": "video/mp4", ".webm": "video/webm", ".vtt": "text/vtt; charset=utf-8",
	".zip": "application/zip", ".gz": "application/gzip", ".br": "application/octet-stream",
}

func contentType(name string) string {
	ext := strings.ToLower(path.Ext(name))
	if t, known := contentTypes[ext]; known {
		return t
	}
	if ext == "" && strings.HasPrefix(name, ".well-known/") {
		return "application/json" // apple-app-site-association has no extension and has to be JSON
	}
	if t := mime.TypeByExtension(ext); t != "" {
		return t
	}
	return "application/octet-stream"
}

//go:embed client/client.js
var clientJS []byte

// Client serves the browser client, an ES module, whatever the path. Like all answers of the broker itself it is not stored: a page
// and the broker it talks to never differ in version.
func Client() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			refuse(w, http.StatusMethodNotAllowed)
			return
		}
		h.Set("Content-Type", contentTypes[".js"])
		h.Set("Cache-Control", "no-store")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(clientJS))
	})
}

//go:embed demo
var demo embed.FS

// Demo returns the sample app, for Config.FS. It loads the browser client from /bff/client.js.
func Demo() fs.FS {
	files, err := fs.Sub(demo, "demo")
	if err != nil {
		panic(err) // the embedded directory has another name
	}
	return files
}
