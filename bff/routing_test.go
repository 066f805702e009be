package bff

import (
	"net/url"
	"strings"
	"testing"

	"github.com/cloakroom-bff/cloakroom/internal/urlpath"
)

func BenchmarkFindRoute(b *testing.B) {
	s := &app{prefix: "/bff"}
	for _, p := range []string{
		"/api/administration/", "/api/reports/yearly/", "/api/admin/", "/events/", "/orders/",
		"/api/",
	} {
		s.routes = append(s.routes, &route{Route: Route{Path: p}})
	}
	for _, p := range []string{"/api/orders/17", "/api/orders/A%20B;c=d", "/assets/index-BkRj3xGh.js"} {
		b.Run(p, func(b *testing.B) {
			decoded, _ := url.PathUnescape(p)
			b.ReportAllocs()
			for b.Loop() {
				if urlpath.Check(p) != nil {
					b.Fatal("refused")
				}
				if _, err := s.findRoute(decoded, decoded); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("strange", func(b *testing.B) {
		p := "/" + strings.Repeat("%252e;x/", 400)
		for b.Loop() {
			s.anyReadingUnderRoute(p)
		}
	})
}
