package web

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// serveKnown serves a file whose digest is in the cache, without opening it,
// and reports whether it did. A client that has the content gets 304, and
// another one what was compressed before. In all cases that take more, such as
// a Range or a list of ETags, it does nothing.
func (h *Handler) serveKnown(w http.ResponseWriter, r *http.Request) bool {
	dir, ok := h.files.(directory)
	has := r.Header["If-None-Match"]
	if !ok || len(has) > 1 || r.Header["If-Match"] != nil || r.Header["If-Unmodified-Since"] != nil ||
		r.Header["Range"] != nil {
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
	etag, body := d.etag, []byte(nil)
	chosen, encodes := accepted.choose(all, info.Size() < minCompressed)
	if encodes {
		etag, body = h.known(files, d.etag, chosen)
	}
	modified := len(has) == 0
	if etag == "" || modified && body == nil || !modified && etag != has[0] {
		return false
	}
	header := w.Header()
	header.Set("Cache-Control", h.cacheControl(d.hashed, info))
	header.Set(h.policyName, d.policy)
	header.Set("ETag", etag)
	if len(all) > 0 {
		header.Add("Vary", "Accept-Encoding")
	}
	if !modified {
		w.WriteHeader(http.StatusNotModified)
		return true
	}
	header.Set("Accept-Ranges", "bytes")
	header.Set("Content-Type", contentType(name))
	header.Set("Content-Encoding", chosen.coding)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		w.Write(body) // an error means that the client is gone
	}
	return true
}

// known returns the ETag of a file in a content coding, and the content if it
// was compressed here. identity is the ETag without a coding. What is not in a
// cache is empty.
func (h *Handler) known(files fs.StatFS, identity string, o offer) (etag string, body []byte) {
	if o.sibling == "" {
		if e := h.compressed.get(variant{identity, o.coding}); e != nil {
			return e.etag, e.data
		}
		return "", nil
	}
	info, err := files.Stat(o.sibling)
	if err != nil {
		return "", nil
	}
	d, _ := h.digests.get(o.sibling, info)
	return d.etag, nil
}

// statFiles is an fs.StatFS of the names in a directory that opens none of
// them. Unlike a root, it follows links that lead out. But only a file that was
// in the directory has a digest.
type statFiles string

func (s statFiles) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: errors.ErrUnsupported}
}

func (s statFiles) Stat(name string) (fs.FileInfo, error) {
	return os.Stat(filepath.Join(string(s), filepath.FromSlash(name)))
}
