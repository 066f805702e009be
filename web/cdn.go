package web

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/andybalholm/brotli"

	"github.com/cloakroom-bff/cloakroom/internal/flight"
)

// cdn is an fs.FS with the index.html of an app on a CDN. It keeps the page for
// cdnFresh, so that a deploy is visible soon, and for cdnStale while the CDN
// fails.
type cdn struct {
	url    string // of index.html
	client *http.Client
	log    *slog.Logger
	reads  flight.Group[struct{}, *cdnPage]

	mu     sync.Mutex // guards all below
	page   *cdnPage   // nil: none was read yet
	nextAt time.Time  // when the page is read again
	err    error      // of the last read
}

// cdnPage is an index.html as it was read.
type cdnPage struct {
	content []byte
	etag    string // of the CDN; may be empty
	at      time.Time
}

const (
	cdnFresh   = 10 * time.Second
	cdnStale   = time.Hour
	cdnRetry   = 2 * time.Second  // after a failure
	cdnTimeout = 10 * time.Second // of one read
	cdnWait    = 2 * time.Second  // for a read, if there is an older page
	maxCDNPage = 1 << 20
)

func newCDN(base *url.URL, client *http.Client, log *slog.Logger) *cdn {
	own := *cmp.Or(client, &http.Client{})
	own.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) > 3 || req.URL.Scheme != via[0].URL.Scheme || req.URL.Host != via[0].URL.Host {
			return fmt.Errorf("it redirects to %s", req.URL.Redacted())
		}
		return nil
	}
	return &cdn{url: strings.TrimSuffix(base.String(), "/") + "/" + index, client: &own, log: log}
}

// Open returns the page as index.html. There is no other file.
func (c *cdn) Open(name string) (fs.File, error) {
	if name != index {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	page, err := c.current()
	if err != nil {
		return nil, err
	}
	return &cdnFile{*bytes.NewReader(page.content), page}, nil
}

// current returns the page. It waits for the CDN if it has none that can be
// used. If it has an older one, it waits a short time, and not at all while the
// CDN fails.
func (c *cdn) current() (*cdnPage, error) {
	c.mu.Lock()
	page, lastErr, now := c.page, c.err, time.Now()
	due := now.After(c.nextAt)
	c.mu.Unlock()
	if page != nil && now.Sub(page.at) > cdnStale {
		page = nil
	}
	switch {
	case due:
	case page != nil:
		return page, nil
	case lastErr != nil:
		return nil, lastErr
	}
	wait := cdnTimeout
	switch {
	case page != nil && lastErr != nil:
		wait = 0
	case page != nil:
		wait = cdnWait
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	read, err := c.reads.Do(ctx, struct{}{}, cdnTimeout, c.read)
	if err != nil && page != nil {
		return page, nil
	}
	return read, err
}

// read reads the page, and records when to do so again.
func (c *cdn) read(ctx context.Context) (*cdnPage, error) {
	c.mu.Lock()
	before := c.page
	c.mu.Unlock()
	page, err := c.get(ctx, before)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.err == nil {
			c.log.WarnContext(ctx, "page of the app not read from frontend.url; the last one is served for an hour",
				"url", c.url, "err", err)
		}
		c.err, c.nextAt = err, time.Now().Add(cdnRetry)
		return nil, err
	}
	if c.err != nil {
		c.log.InfoContext(ctx, "page of the app read from frontend.url again", "url", c.url)
	}
	c.page, c.err, c.nextAt = page, nil, time.Now().Add(cdnFresh)
	return page, nil
}

// get requests the page, unless it is the one before.
func (c *cdn) get(ctx context.Context, before *cdnPage) (*cdnPage, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/html")
	req.Header.Set("User-Agent", "cloakroom")
	if before != nil && before.etag != "" {
		req.Header.Set("If-None-Match", before.etag)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && before != nil:
		return &cdnPage{before.content, before.etag, time.Now()}, nil
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the status is %s", resp.Status)
	case !strings.HasPrefix(strings.ToLower(resp.Header.Get("Content-Type")), "text/html"):
		return nil, fmt.Errorf("its type is %.80q, not text/html", resp.Header.Get("Content-Type"))
	}
	body := io.Reader(resp.Body)
	switch coding := strings.ToLower(resp.Header.Get("Content-Encoding")); coding {
	case "", "identity": // http.Transport has decoded gzip
	case "br": // of a bucket in which only this form is stored
		body = brotli.NewReader(body)
	default:
		return nil, fmt.Errorf("its Content-Encoding is %.80q, which was not accepted", coding)
	}
	content, err := io.ReadAll(io.LimitReader(body, maxCDNPage+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxCDNPage {
		return nil, errors.New("it is larger than 1 MiB")
	}
	return &cdnPage{content, resp.Header.Get("ETag"), time.Now()}, nil
}

// cdnFile is a cdnPage as an fs.File.
type cdnFile struct {
	bytes.Reader
	page *cdnPage
}

func (f *cdnFile) Close() error               { return nil }
func (f *cdnFile) Stat() (fs.FileInfo, error) { return cdnInfo{f.page}, nil }

// cdnInfo is the fs.FileInfo of a cdnFile.
type cdnInfo struct{ page *cdnPage }

func (i cdnInfo) Name() string       { return index }
func (i cdnInfo) Size() int64        { return int64(len(i.page.content)) }
func (i cdnInfo) Mode() fs.FileMode  { return 0o444 }
func (i cdnInfo) ModTime() time.Time { return i.page.at }
func (i cdnInfo) IsDir() bool        { return false }
func (i cdnInfo) Sys() any           { return nil }
