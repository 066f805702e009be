package bearer

// Remembered is how many good tokens are remembered.
func (v *Verifier) Remembered() int { return len(v.good.of) }
