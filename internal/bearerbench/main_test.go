package main

import "testing"

func TestAllSystemsAcceptOnlyValidTokens(t *testing.T) {
	iss := newIssuer()
	defer iss.close()
	for _, s := range systems {
		for _, alg := range algorithms {
			if err := check(t.Context(), s, iss, alg); err != nil {
				t.Error(err)
			}
		}
	}
}
