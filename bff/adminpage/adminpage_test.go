package adminpage

import (
	"encoding/xml"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// minutes returns an hour in which edit has changed some minutes.
func minutes(edit func(m []Minute)) []Minute {
	m := make([]Minute, 60)
	edit(m)
	return m
}

func TestChartsSumUpTheHour(t *testing.T) {
	all := charts(minutes(func(m []Minute) {
		m[0] = Minute{SignIns: 1000, RefusedSignIns: 1}
		m[59] = Minute{SignIns: 234, FailedRefreshes: 3, ServerErrors: 2, Median: 2 * time.Millisecond,
			P95: time.Second}
	}))
	for i, want := range []struct {
		label, top string
		paths      int
	}{
		{"Sign-ins in the last hour: 1\u202f234 completed, 1 refused", "2\u202f000/min", 2},
		{"Token refreshes in the last hour: 0 successful, 3 failed", "5/min", 1},
		{"Error responses in the last hour: 0 4xx, 2 5xx", "2/min", 1},
		{"Response time of routes in the last minute with requests: median 2.0 ms, p95 1.0 s", "1.0 s", 2},
	} {
		c := all[i]
		if c.Label != want.label {
			t.Errorf("label: got %q, want %q", c.Label, want.label)
		}
		if c.Top != want.top {
			t.Errorf("%s: top: got %q, want %q", c.Title, c.Top, want.top)
		}
		paths := 0
		for _, s := range c.Series {
			if s.Path != "" {
				paths++
			}
		}
		if paths != want.paths {
			t.Errorf("%s: got %d paths, want %d", c.Title, paths, want.paths)
		}
	}
	if got, want := all[0].Series[0].Path, "M0 48.0v-24.0h3v24.0zM236 48.0v-5.6h3v5.6z"; got != want {
		t.Errorf("bars: got %s, want %s", got, want)
	}
	if got, want := all[0].Series[1].Path, "M0 24.0v-1.0h3v1.0z"; got != want {
		t.Errorf("bars on top: got %s, want %s", got, want)
	}
}

func TestEmptyChartsHaveNoScale(t *testing.T) {
	for _, c := range charts(make([]Minute, 60)) {
		if c.Top != "" {
			t.Errorf("%s: top: got %q, want none", c.Title, c.Top)
		}
	}
}

func TestLatencyLineHasGaps(t *testing.T) {
	all := charts(minutes(func(m []Minute) {
		for _, i := range []int{1, 2, 5} {
			m[i] = Minute{Median: 5 * time.Millisecond, P95: 10 * time.Millisecond}
		}
	}))
	if got, want := all[3].Series[0].Path, "M4 24.0h4V24.0h4M20 24.0h4"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestTextsForPeople(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	for got, want := range map[string]string{
		at(now, time.Time{}):                      "unknown",
		at(now, now.Add(-time.Hour)):              "11:00:00",
		at(now, now.Add(-24*time.Hour)):           "3 Mar, 12:00",
		at(now, now.In(time.FixedZone("", 3600))): "12:00:00",
		duration(0):                                     "–",
		duration(1500 * time.Microsecond):               "1.5 ms",
		duration(150 * time.Millisecond):                "150 ms",
		duration(12 * time.Second):                      "12.0 s",
		plural(1, "problem"):                            "1 problem",
		plural(0, "problem"):                            "0 problems",
		grouped(1234567):                                "1\u202f234\u202f567",
		grouped(niceCount(1)) + grouped(niceCount(600)): "11\u202f000",
		grouped(niceCount(3)):                           "5",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Whatever the values are, they are text.
func TestPageEscapesAllValues(t *testing.T) {
	const hostile = `"><script>alert(1)</script>{{.}}' onload=x `
	p := &Page{
		Origin: hostile, Version: hostile, Now: time.Now(), SignedIn: true, Revoked: 2,
		Search: Search{
			By: "sub", Text: hostile, Problem: "", More: true, Sessions: []Session{{ID: hostile}},
			Events: []Event{{Kind: hostile, Session: hostile}},
		},
		Minutes: make([]Minute, 60), Checks: []Check{{Name: hostile, Failed: true, Note: hostile}, {Warning: true}},
		Replicas:      []Replica{{Name: hostile, Self: true, Version: hostile, Differs: []string{hostile, hostile}}},
		ReplicasError: hostile,
		Events: []Event{{Kind: hostile, Bad: true, User: hostile, Session: hostile, Reason: hostile,
			Cause: hostile}},
		Settings: []Setting{{hostile, hostile}},
	}
	for name, write := range map[string]func(w *httptest.ResponseRecorder) error{
		"page":    func(w *httptest.ResponseRecorder) error { return Write(w, p) },
		"sign-in": func(w *httptest.ResponseRecorder) error { return WriteSignIn(w, hostile) },
		"problem": func(w *httptest.ResponseRecorder) error { return WriteProblem(w, 400, hostile) },
	} {
		w := httptest.NewRecorder()
		if err := write(w); err != nil {
			t.Fatal(err)
		}
		body := w.Body.String()
		if strings.Contains(body, "<script>alert") {
			t.Errorf("%s: a value is not escaped", name)
		}
		wantNothingInline(t, name, body)
	}
}

// wantNothingInline checks that a page is well-formed, and that its policy
// blocks nothing of it.
func wantNothingInline(t *testing.T, name, body string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(body))
	d.Strict, d.AutoClose, d.Entity = false, xml.HTMLAutoClose, xml.HTMLEntity
	for {
		token, err := d.Token()
		if err != nil {
			if err.Error() != "EOF" {
				t.Errorf("%s: %v", name, err)
			}
			return
		}
		element, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		for _, a := range element.Attr {
			if a.Name.Local == "style" || strings.HasPrefix(a.Name.Local, "on") {
				t.Errorf("%s: <%s %s=%q> is inline", name, element.Name.Local, a.Name.Local, a.Value)
			}
			if strings.Contains(a.Value, "//") && (a.Name.Local == "src" || a.Name.Local == "href") {
				t.Errorf("%s: <%s %s=%q> is not of this origin", name, element.Name.Local, a.Name.Local, a.Value)
			}
		}
	}
}

func TestFilesAreServed(t *testing.T) {
	for path, want := range map[string]int{
		"/admin/page/style.css": 200, "/admin/page/script.js": 200, "/admin/page/icon.svg": 200,
		"/admin/page/page.html": 404, "/admin/page/adminpage.go": 404, "/admin/page/..": 404, "/": 404,
	} {
		w := httptest.NewRecorder()
		ServeFile(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("%s: got %d, want %d", path, w.Code, want)
		}
	}
}
