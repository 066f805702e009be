package bearer_test

import "testing"

func BenchmarkVerify(b *testing.B) {
	v := newIssuer(rsaKey().jwk(), ecKey().jwk(), ed25519Key().jwk()).verifier(b)
	for _, s := range []*signer{rsaKey(), ecKey(), ed25519Key()} {
		b.Run(s.alg, func(b *testing.B) {
			raw := s.token()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), raw); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
