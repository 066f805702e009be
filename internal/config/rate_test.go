package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestRatesAreWrittenWithUnits(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]ByteRate{
		"240B/s": 240, "1KiB/s": 1024, "1kB/s": 1000, "10 MB/s": 10_000_000, "1GiB/s": 1 << 30, "240 B/s": 240,
		"7/s": 7,
		"0":   noRate, "off": noRate, "0B/s": noRate, "0/s": noRate,
		"": 0, "240": 0, "240B": 0, "240B/m": 0, "-1B/s": 0, "B/s": 0, "/s": 0, "1.5KiB/s": 0,
		"fast": 0, "240b/s": 0, "Off": 0, "none": 0, "240B/s/s": 0,
		"99999999999GiB/s": 0, "8000000GiB/s": 0,
	} {
		if got, err := parseByteRate(text); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
}

func TestTheMinimumRateOfBodiesIsConfigured(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]ByteRate{
		"": 0, "server: {limits: {}}": 0,
		"server: {limits: {body_min_rate: 1KiB/s}}": 1024,
		"server: {limits: {body_min_rate: off}}":    noRate,
		"server: {limits: {body_min_rate: 0}}":      noRate,
	} {
		if got := mustLoad(t, text+"\n", nil).Server.Limits.BodyMinRate; got != want {
			t.Errorf("%s: got %d, want %d", text, got, want)
		}
	}
	c := mustLoad(t, "server: {limits: {body_min_rate: 1KiB/s}}\n",
		map[string]string{"CLOAKROOM_SERVER_LIMITS_BODY_MIN_RATE": "2KiB/s"})
	if c.Server.Limits.BodyMinRate != 2048 {
		t.Errorf("the environment: got %d", c.Server.Limits.BodyMinRate)
	}
	if shown := fmt.Sprint(c.LogValue()); !strings.Contains(shown, "body_min_rate=2048B/s") {
		t.Errorf("the log shows %s", shown)
	}
	_, err := load(t, "server: {limits: {body_min_rate: 240, body_max_rate: 1}}\nstore: {prefix: [1]}\n", nil)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`server.limits.body_min_rate: "240" is not a rate such as 240B/s`,
		"server.limits.body_max_rate: unknown key", "store.prefix",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
