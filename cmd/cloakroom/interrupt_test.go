package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Ctrl-C ends a command that waits for a person. It writes nothing then.
func TestCommandsThatReadCanBeInterrupted(t *testing.T) {
	t.Parallel()
	stdin, typed := io.Pipe()
	t.Cleanup(func() { typed.Close() })
	dir := t.TempDir()
	overwrite(t, filepath.Join(dir, "package.json"), `{"devDependencies": {"vite": "8"}}`)
	pipe := filepath.Join(t.TempDir(), "pipe") // without a writer
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	withPipe := func(args ...string) func(context.Context) error {
		return func(ctx context.Context) error {
			return run(ctx, append(args, "--config", pipe), func(string) string { return "" },
				stdin, io.Discard, io.Discard)
		}
	}
	for name, start := range map[string]func(context.Context) error{
		"serve":  withPipe("serve"),
		"check":  withPipe("check", "--offline"),
		"reload": withPipe("reload"),
		"verify": func(ctx context.Context) error {
			return run(ctx, []string{"verify", "--issuer", "https://id.example.com", "--audience", "a"},
				func(string) string { return "" }, stdin, io.Discard, io.Discard)
		},
		"init, first question": func(ctx context.Context) error {
			i := initializer{dir: dir, out: io.Discard, in: bufio.NewScanner(interruptible{ctx, stdin})}
			return i.run(false)
		},
		"init, last question": func(ctx context.Context) error {
			answers := io.MultiReader(bytes.NewReader([]byte("https://id.example.com\nspa\nhttps://a.example\n")),
				interruptible{ctx, stdin})
			i := initializer{dir: dir, out: io.Discard, in: bufio.NewScanner(answers)}
			return i.run(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, interrupt := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- start(ctx) }() // until start returns
			interrupt()
			select {
			case err := <-ended:
				if !errors.Is(err, errInterrupted) || exitCode(err) != 1 {
					t.Errorf("got status %d, %v, want 1, %v", exitCode(err), err, errInterrupted)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the command still waits")
			}
			if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
				t.Errorf("got %v, %v, want package.json only", files, err)
			}
		})
	}
}
