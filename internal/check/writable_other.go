//go:build !linux && !darwin

package check

// checkWritable does nothing.
func checkWritable(string) error { return nil }

// checkWritableFile does nothing.
func checkWritableFile(string) error { return nil }
