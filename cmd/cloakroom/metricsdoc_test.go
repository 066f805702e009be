package main

import (
	"flag"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/cloakroom-bff/cloakroom/internal/config"
	"github.com/cloakroom-bff/cloakroom/session"
)

var update = flag.Bool("update", false, "write the table of docs/metrics.md")

const metricsPage = "../../docs/metrics.md"

// What is between these lines of the page is generated.
const (
	tableBegin = "<!-- metrics -->\n"
	tableEnd   = "<!-- /metrics -->\n"
)

func TestMetricsPageListsAllMetrics(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, foundBegin := strings.Cut(string(page), tableBegin)
	_, tail, foundEnd := strings.Cut(rest, tableEnd)
	if !foundBegin || !foundEnd {
		t.Fatalf("docs/metrics.md lacks %q or %q", tableBegin, tableEnd)
	}
	want := head + tableBegin + "\n" + metricsTable(t) + "\n" + tableEnd + tail
	if *update {
		if err := os.WriteFile(metricsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(page) != want {
		t.Error("docs/metrics.md is not that of the code; " +
			"run go test ./cmd/cloakroom -run TestMetricsPage -update")
	}
}

// metricsTable describes the metrics of a broker that uses everything.
func metricsTable(t *testing.T) string {
	t.Helper()
	cert, key := newPair(t, 1, time.Now().Add(time.Hour))
	files := config.TLS{CertFile: writeFile(t, "tls.crt", cert), KeyFile: writeFile(t, "tls.key", key)}
	cfg := &config.Config{
		Server:  config.Server{PublicURL: "https://app.example", TLS: files},
		OIDC:    config.OIDC{Issuer: "https://id.example", ClientID: "spa", ClientSecret: "s"},
		Store:   config.Store{URL: "memory:"},
		Session: config.Session{Keys: []session.Secret{newKey()}},
		Routes:  []config.Route{{Path: "/api/", Upstream: []string{"http://127.0.0.1:1"}, Token: "user"}},
	}
	cfg.SetDefaults()
	b, err := newBroker(cfg, extras{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	b.server.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "https://app.example/api/x", nil))
	families, err := b.newRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	table.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "cloakroom_") {
			fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", f.GetName(),
				strings.ToLower(f.GetType().String()), labelsOf(f), f.GetHelp())
		}
	}
	return table.String()
}

// labelsOf returns the names of the labels of a metric.
func labelsOf(f *dto.MetricFamily) string {
	var names []string
	for _, l := range f.GetMetric()[0].GetLabel() {
		names = append(names, "`"+l.GetName()+"`")
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
