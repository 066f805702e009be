package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/cloakroom-bff/cloakroom/bearer"
	"github.com/cloakroom-bff/cloakroom/internal/config"
)

func verifyCommand() *cobra.Command {
	var api config.AcceptBearer
	c := &cobra.Command{
		Use:   "verify --issuer URL --audience NAME [--scope SCOPE] < TOKEN",
		Short: "Check an access token as an API would",
		Long: `Check an access token as an API would. The token is read from standard input and
is not sent anywhere: the command only fetches the issuer's metadata and keys.
It prints header and claims, and the result of each check that package bearer
and accept_bearer make. The exit status is 1 if an API would refuse the token.`,
		DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, _ []string) error {
			return verify(c.Context(), api, c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	c.Flags().StringVar(&api.Issuer, "issuer", "", "issuer `URL`, exactly as in the tokens")
	c.Flags().StringVar(&api.Audience, "audience", "", "`NAME` of the API, which aud must contain")
	c.Flags().StringSliceVar(&api.Scopes, "scope", nil, "required `SCOPE`; can be repeated")
	c.Flags().StringSliceVar(&api.Clients, "client", nil, "accepted `CLIENT_ID`; can be repeated (default any)")
	c.Flags().StringSliceVar(&api.Algorithms, "algorithm", nil,
		"accepted `ALG`; can be repeated (default RS256, PS256, ES256, EdDSA, Ed25519)")
	c.Flags().BoolVar(&api.InsecureAllowAnyType, "insecure-allow-any-type", false,
		"accept a typ other than at+jwt, as the key of the same name does")
	c.Flags().StringVar(&api.CAFile, "ca-file", "", "`FILE` with the CAs that sign the issuer's certificate, in PEM")
	return c
}

// maxPasted is the maximum size of standard input in bytes.
const maxPasted = 64 << 10

// errRefused: an API would refuse the token.
var errRefused = errors.New("an API would refuse this token")

// verify prints a token, the checks of an API and their results.
func verify(ctx context.Context, api config.AcceptBearer, stdin io.Reader, stdout, stderr io.Writer) error {
	verifier, err := api.Verifier("", slog.New(slog.DiscardHandler))
	var problems config.Errors
	if errors.As(err, &problems) {
		for _, problem := range problems {
			problem.Key = "--" + strings.ReplaceAll(strings.TrimSuffix(problem.Key, "s"), "_", "-")
		}
		return usageError{problems}
	}
	raw, err := readToken(ctx, stdin, stderr)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	printToken(&out, raw)
	out.WriteString("Checks\n")
	signs := make(map[string]bool)
	for _, c := range verifier.Explain(ctx, raw, api.Scopes...) {
		sign, words := verdict(c)
		fmt.Fprintf(&out, "  %s %-10s %s\n", sign, c.Name, printable(words))
		signs[sign] = true
	}
	switch {
	case signs["✗"]:
		err = errRefused
	case signs["?"]:
		err = errors.New("the result is unknown without the issuer's keys")
	default:
		out.WriteString("\nAn API would accept this token.\n")
	}
	if _, failed := stdout.Write(out.Bytes()); failed != nil {
		return failed
	}
	return err
}

// readToken reads a token, alone or after "Bearer".
func readToken(ctx context.Context, stdin io.Reader, stderr io.Writer) (string, error) {
	if isTerminal(stdin) {
		fmt.Fprintln(stderr, "Paste the token, then press Enter and Ctrl-D:")
	}
	pasted, err := io.ReadAll(io.LimitReader(interruptible{ctx, stdin}, maxPasted+1))
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	words := strings.Fields(string(pasted))
	if len(words) == 2 && strings.EqualFold(words[0], "Bearer") {
		words = words[1:]
	}
	switch {
	case len(pasted) > maxPasted:
		return "", fmt.Errorf("standard input has more than %d KiB, which is not a token", maxPasted>>10)
	case len(words) == 0:
		return "", errors.New("standard input is empty, want an access token")
	case len(words) > 1:
		return "", fmt.Errorf("standard input has %d words, want one token", len(words))
	}
	return words[0], nil
}

// verdict returns the result of a check and the reason. The result is ✓, ✗, or
// ? if it is unknown.
func verdict(c bearer.Check) (sign, words string) {
	var invalid *bearer.InvalidTokenError
	switch {
	case c.Err == nil:
		return "✓", c.Rule
	case errors.Is(c.Err, bearer.ErrUnavailable):
		return "?", c.Err.Error()
	case errors.As(c.Err, &invalid) && invalid.Err != nil:
		return "✗", invalid.Reason + ": " + invalid.Err.Error()
	case errors.As(c.Err, &invalid):
		return "✗", invalid.Reason
	}
	return "✗", c.Err.Error()
}

// isTerminal reports whether a reader or writer is a terminal. The null device
// is none, although it is a character device too.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// printToken writes the header and the claims of a token without verifying it.
// It omits the signature, so that its output is not a token.
func printToken(out *bytes.Buffer, raw string) {
	parts := strings.Split(raw, ".")
	switch len(parts) {
	case 3:
	case 5:
		out.WriteString("This is an encrypted token (JWE). Only its audience can decrypt it.\n\n")
		parts = parts[:1]
	default:
		out.WriteString("This is not a JWT. If it is an opaque token, only its issuer can read it (RFC 7662).\n\n")
		return
	}
	for i, title := range []string{"Header", "Claims"}[:min(2, len(parts))] {
		fmt.Fprintf(out, "%s\n", title)
		if err := printObject(out, parts[i]); err != nil {
			fmt.Fprintf(out, "  cannot be read: %s\n", printable(err.Error()))
		}
		out.WriteByte('\n')
	}
}

// printObject writes the members of a base64url-encoded JSON object, one per
// line, in their order.
func printObject(out *bytes.Buffer, encoded string) error {
	text, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return errors.New("it is not base64url")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return errors.New("it is not a JSON object")
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, value); err != nil {
			return err
		}
		fmt.Fprintf(out, "  %-10s %s%s\n",
			printable(fmt.Sprint(name)), printable(compact.String()), dateOf(name, value))
	}
	_, err = d.Token()
	return err
}

// dateOf returns the time of a claim in seconds since 1970. It returns "" for
// other claims.
func dateOf(name any, value json.RawMessage) string {
	switch name {
	case "exp", "nbf", "iat", "auth_time", "updated_at":
	default:
		return ""
	}
	var seconds float64
	if err := json.Unmarshal(value, &seconds); err != nil || seconds < 0 || seconds > 1e11 {
		return ""
	}
	return time.Unix(int64(seconds), 0).UTC().Format("   2006-01-02 15:04:05 UTC")
}

// printable replaces characters that are not printable with escapes. A terminal
// could execute control characters.
func printable(s string) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case unicode.IsPrint(c):
			b.WriteRune(c)
		case c > 0xffff:
			fmt.Fprintf(&b, "\\U%08x", c)
		default:
			fmt.Fprintf(&b, "\\u%04x", c)
		}
	}
	return b.String()
}
