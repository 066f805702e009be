package main

import (
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"testing"
)

// If the reader stays too slow, the line with the count of dropped lines is not
// dropped in turn.
func TestEachDroppedLineIsCounted(t *testing.T) {
	t.Parallel()
	w := &steppedWriter{begun: make(chan string), goOn: make(chan struct{})}
	log, stop := newLogger(w, func(to io.Writer) slog.Handler { return slog.NewJSONHandler(to, nil) })
	const lines = 2 * logBuffer / 1000
	text := strings.Repeat("x", 1000)
	log.Info("line", "text", text)
	var written, dropped, logged int
	dropLine := regexp.MustCompile(`"msg":"log lines dropped","count":(\d+)`)
	step := func(fill bool) bool {
		block, ok := <-w.begun
		if !ok {
			return false
		}
		written += strings.Count(block, `"msg":"line"`)
		for _, m := range dropLine.FindAllStringSubmatch(block, -1) {
			var n int
			fmt.Sscan(m[1], &n)
			dropped += n
		}
		if fill { // during the write of the block
			for range lines {
				log.Info("line", "text", text)
			}
			logged += lines
		}
		w.goOn <- struct{}{}
		return true
	}
	logged++
	for range 3 {
		step(true)
	}
	go func() {
		stop()
		close(w.begun)
	}()
	for step(false) {
	}
	if written+dropped != logged {
		t.Errorf("lines written and dropped: got %d and %d, want %d together", written, dropped, logged)
	}
}

// steppedWriter sends each block to begun, and returns after a value from goOn.
type steppedWriter struct {
	begun chan string
	goOn  chan struct{}
}

func (w *steppedWriter) Write(b []byte) (int, error) {
	w.begun <- string(b)
	<-w.goOn
	return len(b), nil
}
