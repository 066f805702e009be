package web

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

// serveNotModified sends 304 to a client that already has the content of a
// file, and reports whether it did. It opens no file: the digest in the cache
// is that of a file with the same version. In all cases that take more, such as
// a list of ETags, it does nothing.
func (h *Handler) serveNotModified(w http.ResponseWriter, r *http.Request) bool {
	dir, ok := h.files.(directory)
	has := r.Header["If-None-Match"]
	if !ok || len(has) != 1 || r.Header["If-Match"] != nil || r.Header["If-Unmodified-Since"] != nil {
		return false
	}
	names := fileNames(r.URL)
	if len(names) == 0 || !h.public(strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/"), "/")) {
		return false
	}
	name, files := names[0], statFiles(dir)
	info, err := files.Stat(name)
	if err != nil {
		return false
	}
	d, ok := h.digests.get(name, info)
	if !ok || d.relative { // it may be redirected
		return false
	}
	accepted := parseAcceptEncoding(r.Header["Accept-Encoding"])
	all := h.offers(files, name, info, accepted)
	etag := d.etag
	if chosen, ok := accepted.choose(all, info.Size() < minCompressed); ok {
		etag = h.knownETag(files, d.etag, chosen)
	}
	if etag == "" || etag != has[0] {
		return false
	}
	header := w.Header()
	header.Set("Cache-Control", h.cacheControl(name, info))
	header.Set(h.policyName, d.policy)
	header.Set("ETag", etag)
	if len(all) > 0 {
		header.Add("Vary", "Accept-Encoding")
	}
	w.WriteHeader(http.StatusNotModified)
	return true
}

// knownETag returns the ETag of a file in a content coding. identity is its
// ETag without a coding. The result is empty if it is not in a cache.
func (h *Handler) knownETag(files fs.StatFS, identity string, o offer) string {
	if o.sibling == "" {
		if e := h.compressed.get(variant{identity, o.coding}); e != nil {
			return e.etag
		}
		return ""
	}
	info, err := files.Stat(o.sibling)
	if err != nil {
		return ""
	}
	d, _ := h.digests.get(o.sibling, info)
	return d.etag
}

// statFiles is an fs.StatFS of the names in a directory that opens none of
// them. Unlike a root, it follows links that lead out.
type statFiles string

func (s statFiles) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: errors.ErrUnsupported}
}

func (s statFiles) Stat(name string) (fs.FileInfo, error) {
	return os.Stat(filepath.Join(string(s), filepath.FromSlash(name)))
}
