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
	case *session.Secret:
		*p = session.Secret(cleanSecret(text))
	case *time.Duration:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 90s, 30m or 12h", text)
		}
		if d <= 0 {
			return fmt.Errorf("%q is not greater than zero", text)
		}
		*p = d
	case *Delay:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 0s or 5s", text)
		}
		if d < 0 {
			return fmt.Errorf("%q is negative", text)
		}
		*p = Delay(d)
	case *MaxAge:
		d, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as 8760h or 0s", text)
		}
		if d < 0 {
			return fmt.Errorf("%q is negative", text)
		}
		*p = cmp.Or(MaxAge(d), forgetHSTS)
	case *HSTS:
		if text != "off" && text != "false" { // Helm writes the latter
			return fmt.Errorf("%q is neither off nor a mapping with max_age and include_subdomains", text)
		}
		*p = HSTS{MaxAge: noHSTS}
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		*p = n
	case *bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		*p = b
	case *ByteSize:
		n, err := parseSize(text)
		if err != nil {
			return err
		}
		*p = n
	case *EventRate:
		rate, err := parseRate(text)
		if err != nil {
			return err
		}
		*p = rate
	case *BurstSize:
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return fmt.Errorf("%q is not a whole number of 1 or more", text)
		}
		*p = BurstSize(n)
	case *ByteRate:
		n, err := parseByteRate(text)
		if err != nil {
			return err
		}
		*p = n
	case *[]string:
		*p = splitList(text)
	case *[]session.Secret:
		*p = nil
		for _, item := range splitList(text) {
			*p = append(*p, session.Secret(item))
		}
	default:
		return errors.New("must be written as YAML")
	}
	return nil
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
