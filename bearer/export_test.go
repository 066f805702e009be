package bearer

// CachedTokens returns the number of cached tokens.
func (v *Verifier) CachedTokens() int { return len(v.good.entries) }
