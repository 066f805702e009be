// Package web serves the build of an app: its files, compressed, with suitable
// caching and security headers. Every path inside a single-page app gets its
// index.html, so that reloads and deep links work. A build of many pages, such
// as a static export, gets its own page for each path, and its 404.html. The
// package also contains the browser client and the app of the demo.
//
// A Handler serves what is in the directory, so a new deploy is visible on the
// next load. It caches digests of files, and compressed content by digest.
package web

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/text/encoding/unicode"

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
	// Fallback is the response to a navigation for which there is no file.
	// Empty means FallbackAuto.
	Fallback Fallback

	// ErrorPage responds to a navigation with an error: status 404, 503 during
	// a deploy, or 500. bff.ErrorPage does so. Nil means plain text, as all
	// other requests get.
	ErrorPage func(w http.ResponseWriter, r *http.Request, status int)

	// CSP adds sources to directives of the Content-Security-Policy:
	//
	//	"connect-src": {"https://errors.example.com"}, "img-src": {"https:"}
	//
	// Browsers apply form-action to redirects after a form post too, so a
	// logout form needs the provider's origin there. A hash in style-src
	// replaces 'unsafe-inline'.
	CSP map[string][]string
	// CSPReportOnly makes browsers report what the policy would block, and
	// block nothing.
	CSPReportOnly bool
	// PermissionsPolicy maps a browser feature, such as "geolocation", to the
	// origins that may use it: self, * and others. An empty list denies it.
	// Without an entry, features that give access to a user's devices, location
	// or money are denied.
	PermissionsPolicy map[string][]string
	// ReferrerPolicy is the Referrer-Policy. Empty means no-referrer.
	ReferrerPolicy string
	// OpenerPolicy is the Cross-Origin-Opener-Policy. Empty means same-origin.
	OpenerPolicy string
	// HSTS is the value of Strict-Transport-Security (RFC 6797), such as
	// "max-age=31536000; includeSubDomains". Set it only if browsers reach the
	// app by https only. Empty means no header.
	HSTS string
	// SourceMaps serves *.map files. They contain the app's source code.
	SourceMaps bool

	Logger *slog.Logger // nil means slog.Default()
}

// Fallback is the response to a navigation for which there is no file.
type Fallback string

const (
	FallbackAuto  Fallback = "auto"  // FallbackNone if the app has a 404.html, otherwise FallbackIndex
	FallbackIndex Fallback = "index" // index.html, for an app that has a router
	FallbackNone  Fallback = "none"  // 404 with the app's 404.html, or with Config.ErrorPage
)

// Handler serves an app. Make one with [New].
//
// It uses the path of a request's URL as the path inside the app, and responds
// with relative URLs only. So the app can be under a path, such as /shop, if
// [http.StripPrefix] removes that. The app's build must know the path, because
// its pages contain it: base in Vite and Astro ("/shop/"), basePath in Next.js
// ("/shop"), --base-href in Angular ("/shop/"), output.publicPath in webpack
// ("/shop/"). A relative base, such as "./", breaks deep links.
type Handler struct {
	files      fs.FS
	fallback   Fallback
	errorPage  func(w http.ResponseWriter, r *http.Request, status int) // nil: plain text
	policy     policy
	policyName string      // of its header
	headers    http.Header // of every response
	sourceMaps bool
	dev        bool      // Config.URL is that of a development server
	began      time.Time // when New was called
	digests    *digests
	compressed *compressor
	log        *slog.Logger
}

const (
	index    = "index.html"
	notFound = "404.html"
)

// ConfigError is a mistake in one field of a Config. Its fields are Key, such
// as Dir or CSP[img-src], Value and Err.
type ConfigError = configerr.Error

// New returns a Handler for cfg. It looks for index.html and does no other I/O.
// The error joins a *ConfigError for every mistake in cfg.
func New(cfg Config) (*Handler, error) {
	h := &Handler{
		files: cfg.FS, fallback: cmp.Or(cfg.Fallback, FallbackAuto), errorPage: cfg.ErrorPage,
		sourceMaps: cfg.SourceMaps, log: cfg.Logger,
		began: time.Now(), digests: newDigests(), compressed: newCompressor(),
	}
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
	var policyErr, headersErr error
	h.policy, policyErr = newPolicy(cfg.CSP)
	h.policyName = csp
	if cfg.CSPReportOnly {
		h.policyName = cspReportOnly
	}
	if h.dev {
		cfg.HSTS = "" // other servers on this host may have plain http
	}
	h.headers, headersErr = newHeaders(cfg)
	if err := errors.Join(
		checkFiles(cfg), checkFallback(h.fallback), urlErr, policyErr, headersErr,
	); err != nil {
		return nil, err
	}
	return h, nil
}

// checkFiles verifies that exactly one of Dir, FS and URL is set, and that a
// directory or FS has an index.html.
func checkFiles(cfg Config) error {
	switch {
	case cfg.URL != "" && (cfg.Dir != "" || cfg.FS != nil):
		return configerr.New("URL", cfg.URL,
			fmt.Errorf("%q cannot be combined with a directory (dir): remove one of them", cfg.URL))
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

func checkFallback(f Fallback) error {
	switch f {
	case FallbackAuto, FallbackIndex, FallbackNone:
		return nil
	}
	return configerr.New("Fallback", string(f), fmt.Errorf("%q is none of auto, index, none", f))
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

// ServeHTTP serves the file for the path. If there is none, a navigation gets
// what Config.Fallback says, and any other request 404.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	maps.Copy(w.Header(), h.headers) // nothing changes a value in place
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed)
		return
	}
	if h.serveKnown(w, r) {
		return
	}
	files := h.openFiles()
	defer closeFiles(files)
	err := h.serve(w, r, files)
	if errors.Is(err, fs.ErrNotExist) && navigates(r) {
		err = h.serveNotFound(w, r, files)
	}
	_, remote := h.files.(*cdn) // which logs its outage itself, once
	status := http.StatusInternalServerError
	switch {
	case err == nil:
		return
	case errors.Is(err, errNoIndex): // a deploy is in progress
		if !remote {
			h.log.ErrorContext(r.Context(), "the app has no index.html", "err", err)
		}
		status = http.StatusServiceUnavailable
	case errors.Is(err, fs.ErrNotExist):
		status = http.StatusNotFound
	case isUnavailable(err):
		status = http.StatusServiceUnavailable
		fallthrough
	default:
		if !remote {
			h.log.ErrorContext(r.Context(), "file of the app not served", "path", r.URL.Path, "err", err)
		}
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "2")
	}
	h.refuse(w, r, status)
}

// errNoIndex means that index.html, which was there at the start, is missing.
var errNoIndex = errors.New("no index.html")

// serve serves the file for a path, or index.html to a navigation inside the
// app. It returns an error before anything is written.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, files fs.FS) error {
	place := strings.TrimPrefix(r.URL.Path, "/")
	if !h.public(strings.TrimSuffix(place, "/")) {
		return fs.ErrNotExist
	}
	for _, name := range fileNames(r.URL) {
		if err := h.serveFile(w, r, files, name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if !navigates(r) || isAsset(place) {
		return fs.ErrNotExist
	}
	if fallsBack, err := h.fallsBackToIndex(files); !fallsBack {
		return cmp.Or(err, fs.ErrNotExist)
	}
	return h.serveFile(w, r, files, index)
}

// fallsBackToIndex reports whether a navigation without a file gets index.html.
// With an error, that is not known.
func (h *Handler) fallsBackToIndex(files fs.FS) (bool, error) {
	if h.fallback != FallbackAuto {
		return h.fallback == FallbackIndex, nil
	}
	info, err := fs.Stat(files, notFound)
	if isUnavailable(err) {
		return false, err
	}
	return err != nil || !info.Mode().IsRegular(), nil
}

// refuse sends an error: to a navigation the page for it.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, status int) {
	if h.errorPage != nil && navigates(r) {
		h.errorPage(w, r, status)
		return
	}
	refuse(w, status)
}

// refuse sends an error as plain text. It is not cached: the file may exist
// after the next deploy.
func refuse(w http.ResponseWriter, status int) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	http.Error(w, http.StatusText(status), status)
}

// navigates reports whether the browser loads a page, as opposed to a file for
// a script or a page.
func navigates(r *http.Request) bool {
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	return strings.Contains(strings.Join(r.Header.Values("Accept"), ","), "text/html")
}

// serveFile serves a file, or redirects to the URL at which its relative URLs
// work. It returns an error before anything is written.
func (h *Handler) serveFile(w http.ResponseWriter, r *http.Request, files fs.FS, name string) error {
	f, info, err := open(files, name)
	if errors.Is(err, fs.ErrNotExist) && name == index {
		return fmt.Errorf("%w: %v", errNoIndex, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	identity, d, err := h.read(name, f, info)
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Cache-Control", "no-cache")
	header.Set(h.policyName, d.policy)
	if location := canonicalURL(r.URL, name); location != "" && d.relative {
		if r.URL.RawQuery != "" {
			location += "?" + r.URL.RawQuery
		}
		header.Set("Location", location)
		w.WriteHeader(http.StatusPermanentRedirect)
		return nil
	}
	header.Set("Cache-Control", h.cacheControl(d.hashed, info))
	c, closeContent := h.negotiate(w, r, files, name, info, identity)
	defer closeContent()
	if c.etag != "" {
		header.Set("ETag", c.etag)
	}
	if c.coding != "" && r.Header.Get("If-Match") == "" && r.Header.Get("If-Unmodified-Since") == "" {
		// ServeContent omits it for encoded content. With those two headers the
		// response may be 412, which has no content.
		header.Set("Content-Length", strconv.FormatInt(c.size, 10))
	}
	releaseFiles(files, f, c)
	r = withUsableRange(r)
	// Without a time there is no Last-Modified: reproducible builds give every
	// file the same time. The file itself is passed, for sendfile.
	http.ServeContent(copyingWriter(w), r, "", time.Time{}, c.ReadSeeker)
	return nil
}

// releaseFiles closes what is not needed to send the content of f. A client
// that reads slowly keeps one file open at most. The limit of connections
// reckons with two file descriptors for each.
func releaseFiles(files fs.FS, f fs.File, c content) {
	closeFiles(files)
	if _, inMemory := c.ReadSeeker.(*bytes.Reader); inMemory || c.coding != "" {
		f.Close()
	}
}

// isSettled reports whether it is unlikely that a deploy is still writing a
// file: it was not written to for a while, or not since New.
func (h *Handler) isSettled(info fs.FileInfo) bool {
	return info.ModTime().Before(h.began) || time.Since(info.ModTime()) >= settled
}

// cacheControl returns the Cache-Control of a file whose name has a hash of its
// content, or has none. Browsers do not keep one for a year of which a deploy
// may have written only a part.
func (h *Handler) cacheControl(hashed bool, info fs.FileInfo) string {
	if hashed && h.isSettled(info) { // the name changes with the content (RFC 8246)
		return "public, max-age=31536000, immutable"
	}
	return "no-cache"
}

// copyingWriter returns w, with a ReadFrom if it has none: io.Copy would
// allocate a buffer for each response.
func copyingWriter(w http.ResponseWriter) http.ResponseWriter {
	if _, ok := w.(io.ReaderFrom); ok {
		return w
	}
	return bufferedWriter{w}
}

type bufferedWriter struct{ http.ResponseWriter }

var copyBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func (w bufferedWriter) ReadFrom(r io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[32 << 10]byte)
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w.ResponseWriter}, r, buf[:])
}

// serveNotFound serves the app's 404.html with status 404. It returns an error
// before anything is written.
func (h *Handler) serveNotFound(w http.ResponseWriter, r *http.Request, files fs.FS) error {
	f, info, err := open(files, notFound)
	if err != nil {
		return err
	}
	defer f.Close()
	identity, d, err := h.read(notFound, f, info)
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Cache-Control", "no-store") // the file may exist after the next deploy
	header.Set(h.policyName, d.policy)
	c, closeContent := h.negotiate(w, r, files, notFound, info, identity)
	defer closeContent()
	header.Set("Content-Length", strconv.FormatInt(c.size, 10))
	releaseFiles(files, f, c)
	w.WriteHeader(http.StatusNotFound)
	if r.Method != http.MethodHead {
		io.CopyN(w, c, c.size) // an error means that the client is gone
	}
	return nil
}

// content is what a response has: a file in one content coding.
type content struct {
	io.ReadSeeker
	size   int64
	etag   string // a quoted string, or empty
	coding string // empty: none
}

const (
	// maxRead is the size up to which a file that is not in the cache of
	// digests is read into memory, so that content and digest agree whatever
	// happens to the file.
	maxRead = 1 << 20
	// maxDigested is the size up to which a file that can be compressed is, and
	// up to which the inline scripts of a page are found.
	maxDigested = 10 << 20
	// maxDigestedAtOnce is the size up to which digests of pages are computed
	// without waiting for others: to parse a page takes several times its size
	// of memory.
	maxDigestedAtOnce = 64 << 10
	// maxRanges is the maximum number of ranges in one request. Each is a part
	// of the response with its own header.
	maxRanges = 16
)

// withUsableRange returns the request without its Range if that is ignored
// (RFC 9110, section 14.2): it has another unit than bytes, so many ranges that
// the response would be expensive, or the last 0 bytes, for which ServeContent
// has a Content-Range that ends before it begins.
func withUsableRange(r *http.Request) *http.Request {
	value := strings.Join(r.Header["Range"], ",")
	ranges, inBytes := strings.CutPrefix(value, "bytes=")
	ignored := !inBytes || strings.Count(value, ",") >= maxRanges
	for part := range strings.SplitSeq(ranges, ",") {
		suffix, isSuffix := strings.CutPrefix(strings.Trim(part, " \t"), "-")
		ignored = ignored || isSuffix && suffix != "" && strings.Trim(suffix, "0") == ""
	}
	if value == "" || !ignored {
		return r
	}
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	return r
}

// read returns the content of f, without a content coding, and its digest. The
// validator is a hash of the content if that can be compressed or is not above
// maxRead, otherwise its size and time, unless it has no time. The policy of a
// page above maxDigested allows no inline scripts.
func (h *Handler) read(name string, f fs.File, info fs.FileInfo) (content, digest, error) {
	size := info.Size()
	seeker, seeks := f.(io.ReadSeeker)
	whole := content{ReadSeeker: seeker, size: size}
	if known, ok := h.digests.get(name, info); ok && seeks {
		whole.etag = known.etag
		return whole, known, nil
	}
	if seeks && size > maxRead && !canCompress(name, info) {
		if !info.ModTime().IsZero() {
			whole.etag = fmt.Sprintf(`"%x-%x"`, size, info.ModTime().UnixNano())
		}
		return whole, h.newDigest(name), nil
	}
	if size > maxRead || size > maxDigestedAtOnce && isPage(name) {
		defer h.digests.wait()()
		if known, ok := h.digests.get(name, info); ok && seeks { // of the one before
			whole.etag = known.etag
			return whole, known, nil
		}
	}
	c, computed, err := h.compute(name, f, size)
	if err != nil {
		return content{}, digest{}, err
	}
	h.digests.put(name, info, computed)
	return c, computed, nil
}

func isPage(name string) bool { return strings.HasPrefix(contentType(name), "text/html") }

// newDigest returns the digest of a file that has no ETag and no scripts.
func (h *Handler) newDigest(name string) digest {
	return digest{policy: h.policy.forPage(nil), hashed: hasContentHash(name)}
}

// compute returns the content of f and its digest, which is not cached.
func (h *Handler) compute(name string, f fs.File, size int64) (content, digest, error) {
	seeker, seeks := f.(io.ReadSeeker)
	d := h.newDigest(name)
	if seeks && size > maxRead && !isPage(name) {
		hash := sha256.New()
		if _, err := io.Copy(hash, io.LimitReader(f, size)); err != nil {
			return content{}, digest{}, err
		}
		d.etag = etag(hash.Sum(nil))
		_, err := seeker.Seek(0, io.SeekStart)
		return content{seeker, size, d.etag, ""}, d, err
	}
	b, err := io.ReadAll(io.LimitReader(f, size)) // it may grow
	if err != nil {
		return content{}, digest{}, err
	}
	d.etag = etagOf(b)
	if isPage(name) {
		text := utf8Text(b)
		d.policy, d.relative = h.policy.forPage(text), hasRelativeURL(text)
	}
	if seeks && size > maxRead { // as many clients may read it, slowly
		_, err := seeker.Seek(0, io.SeekStart)
		return content{seeker, size, d.etag, ""}, d, err
	}
	return content{bytes.NewReader(b), int64(len(b)), d.etag, ""}, d, nil
}

// utf8Text returns the text of a page. A page in UTF-16 has a byte order mark,
// which browsers heed whatever the Content-Type says (HTML, section 13.2.3.2).
func utf8Text(page []byte) []byte {
	if !bytes.HasPrefix(page, []byte("\xff\xfe")) && !bytes.HasPrefix(page, []byte("\xfe\xff")) {
		return page
	}
	text, err := unicode.UTF16(unicode.BigEndian, unicode.UseBOM).NewDecoder().Bytes(page)
	if err != nil {
		return page // no script in it is found, so none is allowed
	}
	return text
}

func etagOf(b []byte) string {
	sum := sha256.Sum256(b)
	return etag(sum[:])
}

func etag(sum []byte) string { return `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"` }

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
