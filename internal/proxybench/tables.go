//go:build unix

package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/internal/benchtable"
)

// tables writes down the medians.
func (r *rig) tables(results benchtable.Results, streams int) string {
	var t strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&t, format+"\n", args...) }
	line("## The proxy\n")
	line("%s, %d cores, shared by the proxy, the upstream, Redis and whoever asks; Go %s, %s, %s, %s, %s, %s; %s. By `make bench`, in one run: medians of %d rounds, in each of which each system is measured once in each row.\n",
		benchtable.Processor(), runtime.NumCPU(), strings.TrimPrefix(runtime.Version(), "go"), version("nginx", "-v"), envoyVersion(r.envoy), version("apache2", "-v"), installed("libapache2-mod-auth-openidc"), version("redis-server", "--version"), time.Now().Format(time.DateOnly), len(results[r.systems[0].key(cells()[0])+" rate"]))
	line("`httputil.ReverseProxy` keeps up to 512 idle connections and sends the header fields that Cloakroom sends, an access token among them; it has no sessions and writes no log. nginx and Envoy only pass requests on. " +
		"Envoy with its oauth2 filter has the user's tokens in encrypted cookies; `mod_auth_openidc` and Cloakroom have their sessions in Redis; all three attach the access token of a user who has signed in. " +
		"Cloakroom also checks for CSRF and writes a line into its log for each request. nginx has one worker, Envoy one for each core. The request has the headers of a browser; the upstream is one that costs as little as it can, or `net/http` where the heading says so.\n")
	line("Figures that were published until 2026-11-28 are not comparable: the `httputil.ReverseProxy` of that benchmark had http.Transport's default pool, two idle connections for a host, and so opened a connection for most requests, while nginx beside it kept 256. " +
		"It sent fewer headers too. The ratios to it were therefore too good for Cloakroom.\n")
	for _, kind := range cells() {
		if kind.connections != 1 {
			continue
		}
		line("### %s\n", kind.name)
		line("| connections | | requests a second | p50 | p99 | CPU a request | of ReverseProxy's | of nginx's |")
		line("|--:|---|--:|--:|--:|--:|--:|--:|")
		for _, c := range cells() {
			if c.name != kind.name {
				continue
			}
			for _, s := range r.systems {
				what := s.key(c)
				cpu := results.Median(what + " cpu")
				ratio := func(of string) string {
					other := (&system{name: of}).key(c) + " cpu"
					if s.process == nil || !results.Has(other) {
						return ""
					}
					return fmt.Sprintf("%.2f", cpu/results.Median(other))
				}
				shown := "" // of the upstream itself
				if s.process != nil {
					shown = benchtable.Duration(1e-6 * cpu)
				}
				name := s.name
				if name == ours {
					name = "**" + name + "**"
				}
				line("| %d | %s | %.0f | %s | %s | %s | %s | %s |", c.connections, name, results.Median(what+" rate"), benchtable.Duration(1e-6*results.Median(what+" p50")), benchtable.Duration(1e-6*results.Median(what+" p99")), shown, ratio(bare), ratio(nginx))
			}
		}
		line("")
	}
	line("### Memory\n")
	line("| | peak, of all of the above | an idle event stream, of %d |", streams)
	line("|---|--:|--:|")
	for _, s := range r.systems {
		if s.process == nil {
			continue
		}
		stream := ""
		if s.streams {
			stream = fmt.Sprintf("%.1f KB", results.Median(s.name+" stream"))
		}
		line("| %s | %.0f MB | %s |", s.name, results.Median(s.name+" peak")/1024, stream)
	}
	line("\nPeak is `VmHWM`, the sum of a system's processes.")
	return t.String()
}

var number = regexp.MustCompile(`\d+\.\d+(\.\d+)?`)

// version asks a program for its version.
func version(program string, args ...string) string {
	out, _ := exec.Command(program, args...).CombinedOutput()
	return program + " " + number.FindString(string(out))
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
