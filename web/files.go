package web

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/net/html"
)

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
	return rootFiles{root}.Open(name)
}

// rootFiles is the fs.FS of a root. To open a named pipe does not wait for its
// writer, so that open can refuse it.
type rootFiles struct{ root *os.Root }

func (r rootFiles) Open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	f, err := r.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openFiles returns the files for one request. closeFiles closes them. A deploy
// that replaces the directory does not change them, so that all files of a
// response are of the same build.
func (h *Handler) openFiles() fs.FS {
	dir, ok := h.files.(directory)
	if !ok {
		return h.files
	}
	root, err := os.OpenRoot(string(dir))
	if err != nil {
		return dir // returns the error for each file
	}
	return rootFiles{root}
}

// closeFiles closes what openFiles returned. It can be called twice. Files that
// are open remain open.
func closeFiles(files fs.FS) {
	if r, ok := files.(rootFiles); ok {
		r.root.Close()
	}
}

// copiesIndex reports whether the app's 404.html decides its fallback, but is a
// copy of its index.html: some hosts need that of a single-page app.
func (cfg Config) copiesIndex() bool {
	files := cfg.FS
	if cfg.Dir != "" {
		files = directory(cfg.Dir)
	}
	if files == nil || cfg.Fallback != "" && cfg.Fallback != FallbackAuto {
		return false
	}
	info, err := fs.Stat(files, notFound)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxRead {
		return false
	}
	if home, err := fs.Stat(files, index); err != nil || home.Size() != info.Size() {
		return false
	}
	lost, err := fs.ReadFile(files, notFound)
	if err != nil {
		return false // what cannot be read is an error when it is requested
	}
	page, err := fs.ReadFile(files, index)
	return err == nil && bytes.Equal(lost, page)
}

// open opens a regular file. Anything that cannot be served, such as a
// directory or a link that leads out, does not exist. Permission denied and
// what isUnavailable reports remain errors, so that the operator learns of it.
func open(files fs.FS, name string) (fs.File, fs.FileInfo, error) {
	f, err := files.Open(name)
	if errors.Is(err, fs.ErrPermission) || isUnavailable(err) {
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

// isUnavailable reports whether an error does not tell if a file exists: there
// are too many open files, memory is used up, or a network file system has
// replaced the file.
func isUnavailable(err error) bool {
	for _, temporary := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.ESTALE} {
		if errors.Is(err, temporary) {
			return true
		}
	}
	return false
}

// fileNames returns the names of the files that a URL can stand for, best
// first: of /about they are about, about.html and about/index.html, and of
// /about/ about/index.html and about.html. A path with an empty segment, an
// encoded slash or a backslash names no file, but can still be inside the app.
func fileNames(u *url.URL) []string {
	name := strings.TrimPrefix(u.Path, "/")
	if name == "" {
		return []string{index}
	}
	name, isDir := strings.CutSuffix(name, "/")
	isOdd := strings.ContainsAny(name, "\\\x00") || strings.Contains(strings.ToLower(u.EscapedPath()), "%2f")
	switch {
	case isOdd || !fs.ValidPath(name):
		return nil
	case name == wellKnown: // .well-known.html would be a dotfile
		return []string{path.Join(name, index)}
	case isDir:
		return []string{path.Join(name, index), name + ".html"}
	}
	return []string{name, name + ".html", path.Join(name, index)}
}

// wellKnown is the public directory whose name begins with a dot (RFC 8615).
const wellKnown = ".well-known"

// privateKeys are extensions of files that have private keys. No app loads
// them.
var privateKeys = map[string]bool{".key": true, ".pem": true, ".p12": true, ".pfx": true, ".jks": true}

// public reports whether a path may be served at all. Dotfiles often contain
// secrets of the build (.env, .git). A private key is there by mistake.
func (h *Handler) public(name string) bool {
	for i, segment := range strings.Split(name, "/") {
		if strings.HasPrefix(segment, ".") && !(i == 0 && segment == wellKnown) {
			return false
		}
	}
	plain := strings.ToLower(name)
	for _, e := range encodings {
		plain = strings.TrimSuffix(plain, e.suffix)
	}
	ext := path.Ext(plain)
	return !privateKeys[ext] && (h.sourceMaps || ext != ".map")
}

// isAsset reports whether a path names a file and not a place in the app.
// index.html instead of a missing script or image would be a confusing error.
// /people/jane.doe is a place in the app.
func isAsset(name string) bool {
	_, known := contentTypes[strings.ToLower(path.Ext(strings.TrimSuffix(name, "/")))]
	return known
}

// canonicalURL returns the URL, relative to u, at which a page's relative URLs
// resolve to files beside it: with a slash at the end for about/index.html, and
// without for about.html. It is empty if u has that form, or does not stand for
// the page's file.
func canonicalURL(u *url.URL, name string) string {
	place := strings.TrimPrefix(u.Path, "/")
	escaped := strings.TrimSuffix(u.EscapedPath(), "/")
	segment := escaped[strings.LastIndexByte(escaped, '/')+1:]
	switch name {
	case place + "/" + index:
		return "./" + segment + "/"
	case strings.TrimSuffix(place, "/") + ".html":
		if strings.HasSuffix(place, "/") {
			return "../" + segment
		}
	}
	return ""
}

// urlAttributes are the attributes that make a page load or open something.
var urlAttributes = map[string]bool{
	"href": true, "src": true, "srcset": true, "imagesrcset": true, "data": true, "poster": true,
	"action": true, "formaction": true,
}

// hasRelativeURL reports whether a page has a URL that resolves relative to the
// last slash of its own, so that it matters whether that ends with a slash. It
// does not see URLs in scripts and style sheets.
func hasRelativeURL(page []byte) bool {
	found := false
	for tokens := html.NewTokenizer(bytes.NewReader(page)); tokens.Next() != html.ErrorToken; {
		token := tokens.Token()
		if token.Type != html.StartTagToken && token.Type != html.SelfClosingTagToken {
			continue
		}
		for _, a := range token.Attr {
			if !urlAttributes[a.Key] {
				continue
			}
			relative := isRelative(a.Val)
			if token.Data == "base" {
				return relative // the others resolve to it
			}
			found = found || relative
		}
	}
	return found
}

// isRelative reports whether a URL has a relative path (RFC 3986, section 4.2).
func isRelative(raw string) bool {
	raw = strings.TrimSpace(raw)
	if raw == "" || strings.ContainsAny(raw[:1], `/\#?`) {
		return false
	}
	u, err := url.Parse(raw)
	return err != nil || u.Scheme == ""
}
