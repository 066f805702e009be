//go:build !race

package bff_test

// raceDetector says that the tests run under the race detector, where bytes
// move slowly.
const raceDetector = false
