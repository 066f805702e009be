package web

// LimitCompressed sets the limit of compressed content in the cache, in bytes.
func (h *Handler) LimitCompressed(bytes int64) { h.compressed.limit = bytes }

// Compressed returns the number and size of the cache's entries.
func (h *Handler) Compressed() (entries int, bytes int64) {
	h.compressed.mu.Lock()
	defer h.compressed.mu.Unlock()
	return h.compressed.recent.Len(), h.compressed.size
}
