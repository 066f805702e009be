package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// start runs the program and returns its URL, what ends it, and its end.
func start(t *testing.T, args []string, env map[string]string) (url string, stop context.CancelFunc,
	ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	read, write := io.Pipe()
	end := make(chan error, 1)
	go func() {
		err := run(ctx, args, func(name string) string { return env[name] }, write)
		write.CloseWithError(err)
		end <- err
	}()
	lines := bufio.NewScanner(read)
	for lines.Scan() {
		var line struct{ Msg, Listen string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Fatalf("the log line %q is not JSON", lines.Text())
		}
		if line.Msg == "listening" {
			go io.Copy(io.Discard, read) // until the program ends
			return "http://" + line.Listen, cancel, end
		}
	}
	t.Fatalf("it does not listen: %v", <-end)
	return "", nil, nil
}

func noEnv(string) string { return "" }

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestItServesUntilItIsTold(t *testing.T) {
	for _, test := range []struct {
		name string
		args []string
		env  map[string]string
	}{
		{"by flags", []string{"--listen", "127.0.0.1:0", "--issuer", "https://id.example", "--audience", "api"}, nil},
		{"by the environment", nil, map[string]string{"SAMPLE_API_LISTEN": "127.0.0.1:0",
			"SAMPLE_API_ISSUER": "https://id.example", "SAMPLE_API_AUDIENCE": "api"}},
		{"flags before the environment", []string{"--listen=127.0.0.1:0", "--issuer=https://id.example"},
			map[string]string{"SAMPLE_API_LISTEN": "nowhere", "SAMPLE_API_ISSUER": "x",
				"SAMPLE_API_AUDIENCE": "api"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			url, stop, ended := start(t, test.args, test.env)
			if status, body := get(t, url+"/public/time"); status != 200 ||
				!strings.Contains(body, `"authorization_seen":false`) {
				t.Errorf("GET /public/time: got %d %s", status, body)
			}
			if status, _ := get(t, url+"/api/me"); status != 401 {
				t.Errorf("GET /api/me: got %d, want 401", status)
			}
			health := []string{"--health", "--listen", strings.TrimPrefix(url, "http://")}
			if err := run(t.Context(), health, noEnv, io.Discard); err != nil {
				t.Errorf("--health: got %v, want no error", err)
			}
			stop()
			if err := <-ended; err != nil {
				t.Errorf("it ended with %v", err)
			}
			if _, err := http.Get(url + "/public/time"); err == nil {
				t.Error("it still answers")
			}
			if err := run(t.Context(), health, noEnv, io.Discard); err == nil {
				t.Error("--health after its end: got no error")
			}
		})
	}
}

func TestAMistakeIsReportedBeforeItListens(t *testing.T) {
	good := []string{"--issuer", "https://id.example", "--audience", "api"}
	for _, test := range []struct {
		name  string
		args  []string
		want  []string
		usage bool
	}{
		{"nothing set", nil, []string{"Issuer: missing", "Audience: missing"}, true},
		{"an issuer without TLS", []string{"--issuer", "http://id.example", "--audience", "api"},
			[]string{"http://id.example"}, true},
		{"an unknown flag", []string{"--port", "80"}, []string{"port"}, true},
		{"an argument", append(good, "serve"), []string{"serve"}, true},
		{"an address that is none", append(good, "--listen", "nowhere"), []string{"nowhere"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stderr bytes.Buffer
			err := run(t.Context(), test.args, func(string) string { return "" }, &stderr)
			var usage usageError
			if err == nil || errors.As(err, &usage) != test.usage {
				t.Fatalf("got %v, want an error, of usage: %v", err, test.usage)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want it to name %s", err, want)
				}
			}
			if strings.Contains(stderr.String(), "listening") {
				t.Error("it listened")
			}
		})
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	var stderr bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, func(string) string { return "" }, &stderr); err != nil ||
		!strings.Contains(stderr.String(), "-audience") {
		t.Errorf("got %v and\n%s", err, stderr.String())
	}
}
