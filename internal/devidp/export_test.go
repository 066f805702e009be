package devidp

// Remembered is how many things the provider keeps in memory.
func (p *Provider) Remembered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pushed) + len(p.codes) + len(p.sessions) + len(p.refreshTokens) + len(p.accessTokens) + len(p.used)
}

// German has the German texts of the pages.
var German = german
