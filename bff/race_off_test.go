//go:build !race

package bff_test

// raceDetector reports whether the tests run under the race detector, which
// makes transfers slow.
const raceDetector = false
