package web

import (
	"mime"
	"path"
	"strings"
)

// contentTypes lists the types of files that apps consist of. The types that
// package mime knows depend on the machine.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".htm": "text/html; charset=utf-8",
	".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
	".cjs": "text/javascript; charset=utf-8",
	".css": "text/css; charset=utf-8", ".txt": "text/plain; charset=utf-8", ".csv": "text/csv; charset=utf-8",
	".json": "application/json", ".map": "application/json", ".webmanifest": "application/manifest+json",
	".xml": "application/xml", ".wasm": "application/wasm", ".pdf": "application/pdf",
	".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif",
	".webp": "image/webp", ".avif": "image/avif", ".ico": "image/x-icon", ".bmp": "image/bmp",
	".woff": "font/woff", ".woff2": "font/woff2", ".ttf": "font/ttf", ".otf": "font/otf",
	".eot": "application/vnd.ms-fontobject",
	".mp3": "audio/mpeg", ".wav": "audio/wav", ".ogg": "audio/ogg", ".mp4": "video/mp4",
	".webm": "video/webm", ".vtt": "text/vtt; charset=utf-8",
	".zip": "application/zip", ".gz": "application/gzip", ".zst": "application/zstd", ".br": "application/octet-stream",
}

// contentType returns the media type of a file.
func contentType(name string) string {
	ext := strings.ToLower(path.Ext(name))
	if t, known := contentTypes[ext]; known {
		return t
	}
	if ext == "" && strings.HasPrefix(name, ".well-known/") {
		return "application/json" // apple-app-site-association has no extension and must be JSON
	}
	if t := mime.TypeByExtension(ext); t != "" {
		return t
	}
	return "application/octet-stream"
}
