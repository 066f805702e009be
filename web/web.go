// Package web serves a single-page app: its files with suitable caching and
// security headers, and its index.html for every path inside the app, so that
// reloads and deep links work. It also contains the browser client and the app
// of the demo.
//
// A Handler serves what is in the directory, so a new deploy is visible on the
// next load. It caches no content, only digests of it.
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

	"github.com/cloakroom-bff/cloakroom/internal/configerr"
)

// Config configures a [Handler]. Exactly one of Dir, FS and URL is required;
// everything else is optional.
type Config struct {
	// Dir is the output directory of the app's build. It must contain an
	// index.html. Symbolic links that lead out of it are not followed. Dir
	// itself may be a symbolic link, and may be replaced while the Handler
	// serves.
	Dir string
	// FS contains the app instead of Dir.
	FS fs.FS
	// URL is that of a server with the app: a development server, or a CDN. The
	// Handler does not forward requests. See Handler.IsPage and
	// Handler.SetHeader.
	URL string
	// Client is for requests to a CDN. Nil means one with the default
	// transport.
	Client *http.Client

	// FormAction lists further origins that a form may lead to. Browsers apply
	// form-action to redirects after a form post too, so a logout form needs
	// the provider's origin here.
	FormAction []string
	// Sources adds sources to directives of the Content-Security-Policy:
	//
	//	"connect-src": {"https://errors.example.com"}, "img-src": {"https://tiles.example.com", "blob:"}
	//
	// The directives are script-src, style-src, img-src, font-src, connect-src,
	// frame-src, media-src and worker-src.
	Sources map[string][]string
	// Permissions lists the browser features that the app uses, by their names
	// in the Permissions-Policy header, such as "geolocation". Other features
	// that need the user's consent are denied.
	Permissions []string
	// TrustedTypes makes browsers reject strings that would be run as script.
	// The app must be written for it.
	TrustedTypes bool

	// HTTPS sends Strict-Transport-Security (RFC 6797), subdomains included.
	// Set it if browsers reach the app by https only.
	HTTPS bool
	// SourceMaps serves *.map files. They contain the app's source code.
	SourceMaps bool

	Logger *slog.Logger // nil means slog.Default()
}

// Handler serves an app. Make one with [New].
type Handler struct {
	files      fs.FS
	policy     policy
	headers    map[string]string // of every response
	sourceMaps bool
	dev        bool // Config.URL is that of a development server
	digests    digests
	log        *slog.Logger
}

const index = "index.html"

// ConfigError is a mistake in one field of a Config. Its fields are Key, such
// as Dir or Sources[img-src], Value and Err.
type ConfigError = configerr.Error

// New returns a Handler for cfg. It looks for index.html and does no other I/O.
// The error joins a *ConfigError for every mistake in cfg.
func New(cfg Config) (*Handler, error) {
	h := &Handler{files: cfg.FS, sourceMaps: cfg.SourceMaps, log: cfg.Logger}
	if h.log == nil {
		h.log = slog.Default()
	}
	if cfg.Dir != "" {
		h.files = directory(cfg.Dir)
	}
	var urlErr error
	if cfg.URL != "" {
		urlErr = h.setServer(cfg)
	}
	var policyErr error
	h.policy, policyErr = newPolicy(cfg)
	permissions, permissionsErr := permissionsPolicy(cfg.Permissions)
	if err := errors.Join(checkFiles(cfg), urlErr, policyErr, permissionsErr); err != nil {
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
	if cfg.HTTPS && !h.dev { // RFC 6797, section 7.2: not over plain http
		h.headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
	}
	return h, nil
}

// checkFiles verifies that exactly one of Dir, FS and URL is set, and that a
// directory or FS has an index.html.
func checkFiles(cfg Config) error {
	switch {
	case cfg.URL != "" && (cfg.Dir != "" || cfg.FS != nil):
		return configerr.New("URL", cfg.URL, errors.New("it excludes a directory: only one of them has the app"))
	case cfg.URL != "":
		return nil
	case (cfg.Dir == "") == (cfg.FS == nil):
		return configerr.New("Dir", cfg.Dir, errors.New("exactly one of Dir, FS and URL is required"))
	}
	if cfg.Dir != "" {
		if err := checkDir(cfg.Dir); err != nil {
			return configerr.New("Dir", cfg.Dir, err)
		}
		return nil
	}
	if _, err := fs.Stat(cfg.FS, index); err != nil {
		return configerr.New("FS", nil, err)
	}
	return nil
}

// checkDir returns an error with a hint if a directory cannot be served.
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
		return fmt.Errorf("%q has no index.html, but %q has one: use that directory", dir,
			path.Join(dir, path.Dir(inner[0])))
	}
	return fmt.Errorf("%q has no index.html: build the app first, or name the directory that its build writes to", dir)
}

// directory is an fs.FS that opens its root for each file, because a deploy may
// replace the directory or the link to it. os.Root keeps all paths inside,
// symbolic links included.
type directory string

func (d directory) Open(name string) (fs.File, error) {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, err
	}
	defer root.Close() // the opened file outlives it
	return root.Open(name)
}

// open opens a regular file. Anything that cannot be served, such as a
// directory or a link that leads out, does not exist. Permission denied remains
// an error, so that the operator learns of it.
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

// ServeHTTP serves the file at the path, index.html for a navigation inside the
// app, or 404.
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
	case errors.Is(err, fs.ErrNotExist) && name == index: // a deploy is in progress
		h.log.ErrorContext(r.Context(), "the app has no index.html", "err", err)
		w.Header().Set("Retry-After", "2")
		refuse(w, http.StatusServiceUnavailable)
	case errors.Is(err, fs.ErrNotExist):
		refuse(w, http.StatusNotFound)
	default:
		h.log.ErrorContext(r.Context(), "file of the app not served", "file", name, "err", err)
		refuse(w, http.StatusInternalServerError)
	}
}

// public reports whether a path may be served at all. Dotfiles often contain
// secrets of the build (.env, .git). /.well-known/ is public (RFC 8615).
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

// navigates reports whether the browser loads a page, as opposed to a file for
// a script or a page.
func navigates(r *http.Request) bool {
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	return strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "text/html")
}

// isFileName reports whether a path can name a file. Other paths, such as those
// with empty segments, can still be inside the app.
func isFileName(name string) bool {
	return fs.ValidPath(strings.TrimSuffix(name, "/")) && !strings.ContainsAny(name, "\\\x00")
}

// isAsset reports whether a path names a file and not a place in the app.
// index.html instead of a missing script or image would be a confusing error.
// /people/jane.doe is a place in the app.
func isAsset(name string) bool {
	_, known := contentTypes[strings.ToLower(path.Ext(strings.TrimSuffix(name, "/")))]
	return known
}

// refuse sends an error that is not cached: the file may exist after the next
// deploy.
func refuse(w http.ResponseWriter, status int) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	http.Error(w, http.StatusText(status), status)
}

// serveFile serves a file, or returns an error before anything is written.
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
			continue // left over from an earlier deploy
		}
		header.Set("Vary", "Accept-Encoding") // also if the response is not encoded (RFC 9110, section 12.5.5)
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
	if header.Get("Content-Encoding") != "" && r.Header.Get("If-Match") == "" &&
		r.Header.Get("If-Unmodified-Since") == "" {
		// ServeContent omits it for encoded content. With those two headers the
		// response may be 412, which has no content.
		header.Set("Content-Length", strconv.FormatInt(body.size, 10))
	}
	for field, values := range header {
		w.Header()[field] = values
	}
	if strings.Count(strings.Join(r.Header["Range"], ","), ",") >= maxRanges {
		r = r.Clone(r.Context())
		r.Header.Del("Range") // a server may ignore it (RFC 9110, section 14.2)
	}
	// Without a time there is no Last-Modified: reproducible builds give every
	// file the same time.
	http.ServeContent(w, r, "", time.Time{}, body)
	return nil
}

// encodings lists the compressed siblings of a file that a build may write,
// best first.
var encodings = []struct{ coding, suffix string }{{"br", ".br"}, {"gzip", ".gz"}}

// sameBuild is how much older than its file a sibling may be. Copying a build
// writes files in any order.
const sameBuild = time.Minute

// accepts reports whether the client accepts a content coding (RFC 9110,
// section 12.5.3).
func accepts(r *http.Request, coding string) bool {
	accepted := false
	for item := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		name, parameter, _ := strings.Cut(item, ";")
		weight, weighted := strings.CutPrefix(strings.ToLower(strings.TrimSpace(parameter)), "q=")
		q, err := strconv.ParseFloat(weight, 64)
		accepts := !weighted || err == nil && q > 0
		switch name = strings.TrimSpace(name); {
		case strings.EqualFold(name, coding):
			return accepts
		case name == "*":
			accepted = accepts
		}
	}
	return accepted
}

// content is a file's bytes and validator.
type content struct {
	io.ReadSeeker
	size int64
	etag string // a quoted string, or empty
}

// maxHashed is the size up to which a file's content is hashed for its
// validator.
const maxHashed = 1 << 20

// maxRanges is the maximum number of ranges in one request. Each is a part of
// the response with its own header.
const maxRanges = 16

// read returns the content of f and its Content-Security-Policy. The validator
// of a file above maxHashed is its size and time, unless it has no time. A page
// is read whatever its size, because its policy names its scripts.
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

// contentTypes lists the types of files that apps consist of. The types that
// package mime knows depend on the machine.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".htm": "text/html; charset=utf-8",
	".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
	".cjs": "text/javascript; charset=utf-8",
	".css": "text/css; charset=utf-8", ".txt": "text/plain; charset=utf-8", ".csv": "text/csv; charset=utf-8",
	".json": "application/json", ".map": "application/json", ".webmanifest": "application/manifest+json",
	".xml": "application/xml", ".wasm": "application/wasm", ".pdf": "application/pdf",
	".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif",
	".webp": "image/webp", ".avif": "image/avif", ".ico": "image/x-icon", ".bmp": "image/bmp",
	".woff": "font/woff", ".woff2": "font/woff2", ".ttf": "font/ttf", ".otf": "font/otf",
	".eot": "application/vnd.ms-fontobject",
	".mp3": "audio/mpeg", ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp4": "video/mp4",
	".webm": "video/webm", ".vtt": "text/vtt; charset=utf-8",
	".zip": "application/zip", ".gz": "application/gzip", ".br": "application/octet-stream",
}

func contentType(name string) string {
	ext := strings.ToLower(path.Ext(name))
	if t, known := contentTypes[ext]; known {
		return t
	}
	if ext == "" && strings.HasPrefix(name, ".well-known/") {
		return "application/json" // apple-app-site-association has no extension and must be JSON
	}
	if t := mime.TypeByExtension(ext); t != "" {
		return t
	}
	return "application/octet-stream"
}

//go:embed client/client.js
var clientJS []byte

// Client serves the browser client, an ES module, for any path. The response is
// not cached, so that page and broker have the same version.
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

// Demo returns the app of the demo, for Config.FS. It loads the browser client
// from /bff/client.js.
func Demo() fs.FS {
	files, err := fs.Sub(demo, "demo")
	if err != nil {
		panic(err) // the embedded directory has another name
	}
	return files
}
