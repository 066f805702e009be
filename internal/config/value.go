package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/cloakroom-bff/cloakroom/session"
)

// hasText reports whether setText can parse a value of the type of v. Such a
// value is not composite, or a list, or a section that can also be written as
// off.
func hasText(v reflect.Value) bool {
	return !isComposite(v) || v.Kind() == reflect.Slice && !isStructSlice(v) || v.Type() == reflect.TypeFor[HSTS]()
}

// setText parses text into a value. The items of a list are separated by
// commas, spaces or line breaks.
func setText(v reflect.Value, text string) error {
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = text
		return nil
	case *session.Secret:
		*p = session.Secret(cleanSecret(text))
		return nil
	case *[]string:
		*p = splitList(text)
		return nil
	case *[]session.Secret:
		*p = nil
		for _, item := range splitList(text) {
			*p = append(*p, session.Secret(item))
		}
		return nil
	case *time.Duration:
		return parseInto(p, text, parseDuration)
	case *Delay:
		return parseInto(p, text, parseDelay)
	case *MaxAge:
		return parseInto(p, text, parseMaxAge)
	case *HSTS:
		return parseInto(p, text, parseHSTS)
	case *int:
		return parseInto(p, text, parseInt)
	case *bool:
		return parseInto(p, text, parseBool)
	case *ByteSize:
		return parseInto(p, text, parseSize)
	case *ByteRate:
		return parseInto(p, text, parseByteRate)
	case *EventRate:
		return parseInto(p, text, parseRate)
	case *BurstSize:
		return parseInto(p, text, parseBurst)
	}
	return errors.New("must be written as YAML")
}

// parseInto sets *p to what parse returns for text, unless it fails.
func parseInto[T any](p *T, text string, parse func(text string) (T, error)) error {
	value, err := parse(text)
	if err == nil {
		*p = value
	}
	return err
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is not a duration such as 90s, 30m or 12h", text)
	case d <= 0:
		return 0, fmt.Errorf("%q is not greater than zero", text)
	}
	return d, nil
}

func parseDelay(text string) (Delay, error) {
	d, err := parseNotNegative(text, "0s or 5s")
	return Delay(d), err
}

func parseMaxAge(text string) (MaxAge, error) {
	d, err := parseNotNegative(text, "8760h or 0s")
	if err == nil && d > 0 && d < time.Second { // it would be sent as 0
		return 0, fmt.Errorf("%q is less than a second; 0s makes browsers forget the header", text)
	}
	return cmp.Or(MaxAge(d), forgetHSTS), err
}

// parseNotNegative parses a duration that can be zero. examples are for the
// error.
func parseNotNegative(text, examples string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is not a duration such as %s", text, examples)
	case d < 0:
		return 0, fmt.Errorf("%q is negative", text)
	}
	return d, nil
}

func parseHSTS(text string) (HSTS, error) {
	if text != "off" && text != "false" { // Helm writes the latter
		return HSTS{}, fmt.Errorf("%q is neither off nor a mapping with max_age and include_subdomains", text)
	}
	return HSTS{MaxAge: noHSTS}, nil
}

func parseInt(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", text)
	}
	return n, nil
}

func parseBool(text string) (bool, error) {
	b, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%q is neither true nor false", text)
	}
	return b, nil
}

func parseBurst(text string) (BurstSize, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not a whole number of 1 or more", text)
	}
	return BurstSize(n), nil
}

// cleanSecret returns a secret without what files and shells add to it: white
// space around it, and a byte order mark. So it is the same from wherever it is
// read.
func cleanSecret(text string) string {
	return strings.TrimSpace(strings.TrimPrefix(text, "\ufeff"))
}

// parseSize reads a number of bytes such as 4096, 64KiB, 10MB or 1GiB.
func parseSize(text string) (ByteSize, error) {
	digits := strings.TrimRight(text, "kKMGiB ")
	unit, ok := map[string]ByteSize{
		"": 1, "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
	}[strings.TrimSpace(text[len(digits):])]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n <= 0 || n > math.MaxInt64/int64(unit) {
		return 0, fmt.Errorf("%q is not a size such as 64KiB, 10MB or 1GiB", text)
	}
	return ByteSize(n) * unit, nil
}

// parseRate parses a rate such as 4/s, 30/m or 100/h.
func parseRate(text string) (EventRate, error) {
	number, unit, _ := strings.Cut(text, "/")
	seconds, ok := map[string]float64{"s": 1, "m": 60, "h": 3600}[strings.TrimSpace(unit)]
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || !ok || !(n > 0 && n <= 1e9) {
		return 0, fmt.Errorf("%q is not a rate such as 4/s, 30/m or 100/h", text)
	}
	return EventRate(n / seconds), nil
}

// parseByteRate parses a number of bytes per second such as 240B/s or 1KiB/s.
// off and 0 are noRate.
func parseByteRate(text string) (ByteRate, error) {
	size, ok := strings.CutSuffix(text, "/s")
	if size = strings.TrimSpace(size); text == "off" || size == "0" || ok && size == "0B" {
		return noRate, nil
	}
	n, err := parseSize(size)
	if err != nil || !ok || n > 1<<40 {
		return 0, fmt.Errorf("%q is not a rate such as 240B/s or 1KiB/s, or off", text)
	}
	return ByteRate(n), nil
}

func (r ByteRate) String() string {
	if r == noRate {
		return "off"
	}
	return strconv.FormatInt(int64(r), 10) + "B/s"
}

func splitList(text string) []string {
	return strings.FieldsFunc(text, func(c rune) bool { return strings.ContainsRune(", \n\r\t", c) })
}
