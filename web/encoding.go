package web

import (
	"cmp"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// encodings lists the content codings, smallest result first, and the suffixes
// of compressed siblings that a build may write.
var encodings = [...]encoding{{"br", ".br"}, {"zstd", ".zst"}, {"gzip", ".gz"}}

type encoding struct{ coding, suffix string }

// sameBuild is how much older than its file a sibling may be. Copying a build
// writes files in any order.
const sameBuild = time.Minute

// minCompressed is the size below which a file is compressed only for a client
// that refuses it otherwise: it fits into one packet anyway.
const minCompressed = 1 << 10

// compressibleTypes lists the types of text and of other uncompressed content.
// Types that begin with text/ are compressible too.
var compressibleTypes = map[string]bool{
	"application/json": true, "application/manifest+json": true, "application/xml": true,
	"application/wasm": true, "application/vnd.ms-fontobject": true,
	"image/svg+xml": true, "image/bmp": true, "image/x-icon": true, "font/ttf": true, "font/otf": true,
}

// canCompress reports whether a file is of a type and size to be compressed
// here.
func canCompress(name string, info fs.FileInfo) bool {
	mediaType, _, _ := strings.Cut(contentType(name), ";")
	return (strings.HasPrefix(mediaType, "text/") || compressibleTypes[mediaType]) && info.Size() <= maxDigested
}

// offer is a content coding in which a file is available: as a sibling of that
// name or, if it is empty, compressed here.
type offer struct{ coding, sibling string }

// offers returns the content codings of a file that w may choose: that with the
// highest weight first and, of equal ones, that with the smallest result. It
// looks for no more siblings than are needed to choose.
func (h *Handler) offers(files fs.FS, name string, info fs.FileInfo, w weights) []offer {
	var all []offer
	compressible, small := canCompress(name, info), info.Size() < minCompressed
	preferred := encodings
	slices.SortStableFunc(preferred[:], func(a, b encoding) int {
		return cmp.Compare(w.of(b.coding), w.of(a.coding))
	})
	for _, e := range preferred {
		if compressible && w.of(e.coding) == 0 {
			return append(all, offer{coding: e.coding}) // as the rest, it is not acceptable
		}
		sibling, err := fs.Stat(files, name+e.suffix)
		switch {
		case err == nil && sibling.Mode().IsRegular() && sibling.Size() > 0 && // no coding of anything is empty
			info.ModTime().Sub(sibling.ModTime()) <= sameBuild && h.isSettled(sibling):
			all = append(all, offer{e.coding, name + e.suffix})
		case compressible: // without a sibling, with a part of one, or with one left over from an earlier deploy
			all = append(all, offer{coding: e.coding})
		}
		if compressible && !small {
			return all // it is chosen
		}
	}
	return all
}

// negotiate returns the content of a file in the coding that the client
// prefers, and a function that closes it. It sets the header fields that
// describe the coding. A Range applies to the encoded content (RFC 9110,
// section 14.2): a client that wants a part of the file itself does not accept
// a coding, as browsers do.
//
// Compression reveals the content by its length if an attacker's text is beside
// a secret (BREACH). Files have no secrets and repeat nothing of a request.
func (h *Handler) negotiate(
	w http.ResponseWriter, r *http.Request, files fs.FS, name string, info fs.FileInfo, identity content,
) (content, func()) {
	header := w.Header()
	header.Set("Content-Type", contentType(name))
	accepted := parseAcceptEncoding(r.Header["Accept-Encoding"])
	all := h.offers(files, name, info, accepted)
	if len(all) > 0 { // also if the response is not encoded (RFC 9110, section 12.5.5)
		header.Add("Vary", "Accept-Encoding")
	}
	chosen, ok := accepted.choose(all, info.Size() < minCompressed)
	if !ok {
		return identity, func() {}
	}
	c, closeContent := identity, func() {}
	if chosen.sibling != "" {
		c, closeContent, ok = h.readSibling(files, chosen.sibling)
	} else { // h.files, because a compression can outlive the request and its files
		c, ok = h.compressed.compress(r.Context(), h.files, name, variant{identity.etag, chosen.coding})
	}
	if !ok {
		return identity, func() {}
	}
	c.coding = chosen.coding
	header.Set("Content-Encoding", c.coding)
	return c, closeContent
}

// readSibling returns the content of a compressed sibling, and a function that
// closes it. ok is false if it cannot be read.
func (h *Handler) readSibling(files fs.FS, name string) (c content, closeContent func(), ok bool) {
	f, info, err := open(files, name)
	if err != nil {
		return content{}, nil, false
	}
	c, _, err = h.read(name, f, info)
	if err != nil {
		f.Close()
		return content{}, nil, false
	}
	return c, func() { f.Close() }, true
}

// weights are the weights of an Accept-Encoding header field (RFC 9110, section
// 12.5.3). A slice is cheaper than a map of so few.
type weights []weight

// weight is that of a coding, which is in lower case.
type weight struct {
	coding string
	q      float64
}

func parseAcceptEncoding(values []string) weights {
	if len(values) == 0 {
		return nil
	}
	all := make(weights, 0, 8)
	for item := range strings.SplitSeq(strings.ToLower(strings.Join(values, ",")), ",") {
		coding, parameter, _ := strings.Cut(item, ";")
		q := 1.0
		if weight, weighted := strings.CutPrefix(strings.TrimSpace(parameter), "q="); weighted {
			q, _ = strconv.ParseFloat(weight, 64) // 0 if it is not a number
		}
		all = append(all, weight{strings.TrimSpace(coding), q})
	}
	return all
}

// named returns the weight of what is named so; the last one counts.
func (w weights) named(coding string) (q float64, ok bool) {
	for _, item := range slices.Backward(w) {
		if item.coding == coding {
			return item.q, true
		}
	}
	return 0, false
}

// of returns the weight of a coding; 0 means that it is not acceptable.
func (w weights) of(coding string) float64 {
	if q, ok := w.named(coding); ok {
		return q
	}
	q, _ := w.named("*")
	return q
}

// refusesIdentity reports whether content without a coding is not acceptable.
func (w weights) refusesIdentity() bool {
	if q, ok := w.named("identity"); ok {
		return q == 0
	}
	q, ok := w.named("*")
	return ok && q == 0
}

// choose returns the offer with the highest weight, the first one if several
// have it. ok is false if the client prefers content without a coding, or
// accepts no offer. It then gets content without a coding in any case: that is
// of more use than 406 (RFC 9110, section 12.1). A small file is not worth
// compressing here, unless the client refuses it otherwise.
func (w weights) choose(offers []offer, small bool) (best offer, ok bool) {
	for _, o := range offers {
		q := w.of(o.coding)
		if o.sibling == "" && small && !w.refusesIdentity() {
			continue
		}
		if q > 0 && q > w.of(best.coding) || q > 0 && !ok {
			best, ok = o, true
		}
	}
	identity, _ := w.named("identity")
	return best, ok && identity <= w.of(best.coding)
}
