package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// devBasePatience is how long a development server may take for its first page.
const devBasePatience = time.Minute

// checkBase asks the development server for its start page, once it listens. It
// prints a hint if the page cannot work below d.base.
func (d *dev) checkBase(ctx context.Context, server string, stderr io.Writer) {
	start := strings.TrimSuffix(server, "/") + "/"
	client := &http.Client{
		Timeout: devBasePatience,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if first := via[0].URL; req.URL.Host == first.Host && req.URL.Path+"/" == first.Path {
				return nil // the broker follows it too
			}
			return http.ErrUseLastResponse
		},
	}
	for {
		hint, err := baseHint(ctx, client, start, d.base)
		if err == nil {
			if hint != "" {
				fmt.Fprintf(stderr, "\n%s\n\n", hint)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// reference matches a path in the HTML of a page: of a resource or a link, or
// the one that all relative URLs begin with. A link to "/" alone is none.
var reference = regexp.MustCompile(`\b(?:src|href)="(/[^/"][^"]*)"|<base\s[^>]*\bhref="(/)"`)

// baseHint says what is wrong with the start page of a development server for
// an app below base. It is empty if nothing is known to be wrong.
func baseHint(ctx context.Context, client *http.Client, start, base string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, start, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept", "text/html")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	for _, m := range reference.FindAllSubmatch(page, -1) {
		if path := string(m[1]) + string(m[2]); !strings.HasPrefix(path, base+"/") {
			return fmt.Sprintf("The page of the development server refers to %s, which is not below %s, so the "+
				"browser gets 404.\nSet the base of the development server: base: \"%[2]s/\" in Vite, "+
				"\"baseHref\": \"%[2]s/\" in angular.json, basePath: \"%[2]s\" in Next.js.", path, base), nil
		}
	}
	return "", nil
}
