//go:build unix

package main

import (
	"debug/buildinfo"
	"fmt"
	"math"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
)

// about says what the systems do.
const about = `
The systems do different work:

- *httputil.ReverseProxy* keeps up to 512 idle connections. It sends the same headers as Cloakroom,
  including an access token. It has no sessions and writes no log.
- *nginx* and *Envoy* only forward requests. nginx has one worker, Envoy one for each core.
- *nginx with headers and log* sends the same headers as Cloakroom, and writes a log line for each
  request.
- *Envoy with oauth2 filter* has the user's tokens in encrypted cookies and attaches the access
  token.
- *mod_auth_openidc*, *oauth2-proxy* and *Cloakroom* have sessions in Redis and attach the user's
  access token. oauth2-proxy and Cloakroom write a log line for each request. Cloakroom also checks
  for CSRF.

The request has the headers of a browser. The upstream is as cheap as possible, or ` + "`net/http`" + ` or
nginx if the heading says so. Each connection is open and has been used before it is measured. The
last four columns compare the CPU time: they are the medians of the ratios within each round.

As many requests as possible are sent, so a faster system has more of them. If the heading says how
many, each system has as many, and p50 and p99 show how long a user waits at the same load. There,
the time of a request begins when it is due, even if its connection is not free yet.

Figures that were published until 2026-11-28 are not comparable. Their ` + "`httputil.ReverseProxy`" + ` had
the default pool of http.Transport: two idle connections for each host. So it opened a connection
for most requests, and it sent fewer headers. The ratios were too good for Cloakroom. Figures until
2026-11-30 include the opening of the connections.
`

// tables returns the section with the medians.
func (r *rig) tables(results benchtable.Results, cells []cell, idle, streams int) string {
	var t strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	line("## The proxy\n")
	line("- %s, %d cores, shared by the proxy,\n  the upstream, Redis and the load generator", benchtable.Processor(),
		runtime.NumCPU())
	line("- Go %s, %s, %s, %s, %s,\n  %s, %s", strings.TrimPrefix(runtime.Version(), "go"), version("nginx", "-v"),
		envoyVersion(r.envoy), version("apache2", "-v"), installed("libapache2-mod-auth-openidc"),
		oauth2+" "+moduleVersion(r.oauth2), version("redis-server", "--version"))
	rounds := len(results[r.systems[0].key(cells[0])+" rate"])
	line("- measured by `make bench` on %s, in one run: medians of %d rounds. Each round measures each\n"+
		"  system once in each row.", time.Now().Format(time.DateOnly), rounds)
	line("%s", about)
	for i, kind := range cells {
		if i > 0 && kind.name == cells[i-1].name {
			continue
		}
		line("### %s\n", kind.name)
		line("| connections | system | requests per second | p50 | p99 | CPU per request | relative to ReverseProxy " +
			"| to Envoy | to nginx | to nginx with headers and log |")
		line("|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|")
		for _, c := range cells {
			if c.name != kind.name {
				continue
			}
			for _, s := range r.systems {
				what := s.key(c)
				if !results.Has(what + " cpu") {
					continue
				}
				ratio := func(of string) string {
					other := (&system{name: of}).key(c) + " cpu"
					if s.process == nil || !results.Has(other) {
						return ""
					}
					return fmt.Sprintf("%.2f", results.Ratio(what+" cpu", other))
				}
				shown := "" // of the upstream itself
				if s.process != nil {
					shown = benchtable.Duration(1e-6 * results.Median(what+" cpu"))
				}
				name := s.name
				if name == ours {
					name = "**" + name + "**"
				}
				line("| %d | %s | %.0f | %s | %s | %s | %s | %s | %s | %s |", c.connections, name,
					results.Median(what+" rate"),
					benchtable.Duration(1e-6*results.Median(what+" p50")),
					benchtable.Duration(1e-6*results.Median(what+" p99")), shown, ratio(bare), ratio(envoy),
					ratio(nginx), ratio(nginxLike))
			}
		}
		line("")
	}
	r.compareChunks(line, results, cells)
	line("### Memory\n")
	line("| system | peak in all of the above | per idle connection, of %d | per idle event stream, of %d |",
		idle, streams)
	line("|---|--:|--:|--:|")
	for _, s := range r.systems {
		if s.process == nil || !results.Has(s.name+" peak") {
			continue
		}
		connection, stream := "", ""
		if s.streams && streams > 0 {
			connection = fmt.Sprintf("%.1f KB", results.Median(s.name+" connection"))
			stream = fmt.Sprintf("%.1f KB", results.Median(s.name+" stream"))
		}
		line("| %s | %.0f MB | %s | %s |", s.name, results.Median(s.name+" peak")/1024, connection, stream)
	}
	line("\nThe peak is the sum of `VmHWM` of all processes of a system. An idle connection has had one request.\n" +
		"The memory of a connection is the growth by the second half of them.")
	return t.String()
}

// compareChunks adds a table of what a response in chunks costs relative to the
// same one with a length, if both were measured.
func (r *rig) compareChunks(line func(string, ...any), results benchtable.Results, cells []cell) {
	var rows []string
	for _, c := range cells {
		if c.name != chunked {
			continue
		}
		other := cell{name: sized, connections: c.connections}
		for _, s := range r.systems {
			what, to := s.key(c)+" cpu", s.key(other)+" cpu"
			if s.process != nil && results.Has(what) && results.Has(to) {
				rows = append(rows, fmt.Sprintf("| %d | %s | %.2f |", c.connections, s.name, results.Ratio(what, to)))
			}
		}
	}
	if len(rows) == 0 {
		return
	}
	line("### %s, relative to one with a length\n", chunked)
	line("| connections | system | CPU |\n|--:|---|--:|\n%s\n", strings.Join(rows, "\n"))
}

// aboutCalls says how calls are measured.
const aboutCalls = `%d clients make calls at the same time, each on its own connection. All figures are for one
call, without what Cloakroom does anyway. *CPU* is the CPU time of Cloakroom alone. *Round trips*
are those between Cloakroom and Redis, also after the response. *Commands* include those inside of
scripts.
`

// callTables returns the section about the calls.
func (r *rig) callTables(results benchtable.Results, o options) string {
	var t strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	line("## Other calls\n")
	line("%s, %d cores, shared with everything else;\nGo %s, %s, %s.\n"+
		"Medians of %d rounds, measured by `make bench`.\n",
		benchtable.Processor(), runtime.NumCPU(), strings.TrimPrefix(runtime.Version(), "go"),
		version("redis-server", "--version"), time.Now().Format(time.DateOnly), o.rounds)
	line(aboutCalls, callers)
	calls := o.calls()
	for _, c := range calls {
		line("- *%s*: %s", c.name, c.does)
	}
	line("\n| call | system | CPU | relative to a proxied request | round trips | commands | bytes to Redis " +
		"| bytes from Redis | bytes to the client | allocations | allocated |")
	line("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	median := func(s *system, c call, figure string) float64 {
		if figure == cpuRatio {
			return results.Ratio(s.callKey(c, "cpu"), s.callKey(calls[0], "cpu"))
		}
		return max(0, results.Median(s.callKey(c, figure))) // less than the noise: 0
	}
	for _, c := range calls {
		for _, s := range r.brokers() {
			line("| %s | %s | %s | %.2f | %.1f | %.1f | %.0f | %.0f | %.0f | %.0f | %.1f KB |", c.name, s.name,
				benchtable.Duration(1e-6*median(s, c, "cpu")), median(s, c, cpuRatio), median(s, c, "trips"),
				median(s, c, "commands"), median(s, c, "in"), median(s, c, "out"), median(s, c, "got"),
				median(s, c, "allocations"), median(s, c, "allocated")/1024)
		}
	}
	line("\n| call | goal | why | measured | met |")
	line("|---|---|---|--:|---|")
	last := r.brokers()[len(r.brokers())-1]
	for _, c := range calls {
		for _, g := range c.goals {
			want := fmt.Sprintf("at most %.3g of the CPU of a proxied request", g.most)
			switch {
			case g.figure == "trips" && g.most < 1:
				want = "no round trip"
			case g.figure == "trips":
				want = fmt.Sprintf("at most %.0f round trips", g.most)
			}
			got, met := median(last, c, g.figure), "yes"
			if g.figure == "trips" {
				got = math.Round(10*got) / 10 // invalidations and the like are read with it
			}
			if got > g.most {
				met = "**no**"
			}
			line("| %s | %s | %s | %.3g | %s |", c.name, want, g.because, got, met)
		}
	}
	return t.String()
}

var number = regexp.MustCompile(`\d+\.\d+(\.\d+)?`)

// version asks a program for its version.
func version(program string, args ...string) string {
	out, _ := exec.Command(program, args...).CombinedOutput()
	return program + " " + number.FindString(string(out))
}

// moduleVersion returns the version of the module that a program was built
// from.
func moduleVersion(program string) string {
	path, _ := exec.LookPath(program)
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	return info.Main.Version
}

// envoyVersion asks Envoy, which has the hash of a commit before its version.
func envoyVersion(program string) string {
	out, _ := exec.Command(program, "--version").CombinedOutput()
	parts := strings.Split(string(out), "/")
	if len(parts) < 4 {
		return "no Envoy"
	}
	return "Envoy " + parts[len(parts)-4]
}

// installed is the version of a Debian package.
func installed(name string) string {
	out, _ := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
	return "mod_auth_openidc " + number.FindString(string(out))
}
