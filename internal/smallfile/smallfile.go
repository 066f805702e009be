// Package smallfile reads files that people write.
package smallfile

import (
	"fmt"
	"io"
	"os"
)

// max is how many bytes a file may have.
const max = 1 << 20

// Read returns the content of a regular file of up to 1 MiB. It refuses
// anything else, without reading it: a pipe could wait for ever for a writer.
func Read(name string) ([]byte, error) {
	if info, err := os.Stat(name); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%q is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if len(text) > max {
		return nil, fmt.Errorf("%q has more than 1 MiB", name)
	}
	return text, nil
}
