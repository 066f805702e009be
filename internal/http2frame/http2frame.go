// Package http2frame follows the frames of an HTTP/2 connection without
// decoding them.
package http2frame

// PrefaceLength is the size of the client's connection preface in bytes (RFC
// 9113, section 3.4).
const PrefaceLength = 24

const (
	headerLength = 9 // RFC 9113, section 4.1

	typeData         = 0 // RFC 9113, section 6
	typeHeaders      = 1
	typePushPromise  = 5
	typeContinuation = 9
	flagEndHeaders   = 4
)

// Scanner follows what is sent in one direction of a connection. The zero value
// is for a server. That for a client has Preface: PrefaceLength. It is not safe
// for concurrent use.
type Scanner struct {
	Preface int // how much of the client's preface is missing, in bytes

	header [headerLength]byte // of the frame that was begun last
	read   int                // how much of header was read; 0: no frame is open
	left   int                // of the frame's payload
	block  int                // size of the header block that is open
	ended  bool               // a frame was complete
}

// Scan takes the bytes that were sent next.
func (s *Scanner) Scan(p []byte) {
	n := min(s.Preface, len(p))
	s.Preface -= n
	for p = p[n:]; len(p) > 0; {
		if s.read < headerLength {
			n := copy(s.header[s.read:], p)
			s.read += n
			p = p[n:]
			if s.read < headerLength {
				return
			}
			s.left = int(s.header[0])<<16 | int(s.header[1])<<8 | int(s.header[2])
			if s.inBlock() {
				s.block += headerLength + s.left
			}
		}
		n := min(s.left, len(p))
		s.left -= n
		p = p[n:]
		if s.left == 0 {
			s.endFrame()
		}
	}
}

func (s *Scanner) inBlock() bool {
	kind := s.header[3]
	return kind == typeHeaders || kind == typePushPromise || kind == typeContinuation
}

func (s *Scanner) endFrame() {
	if s.inBlock() && s.header[4]&flagEndHeaders != 0 {
		s.block = 0
	}
	s.read, s.ended = 0, true
}

// Between reports whether another frame may be sent now: the preface, if there
// is one, and the first frame, which is SETTINGS (RFC 9113, section 3.4), are
// complete. No frame is open, and no header block (RFC 9113, section 4.3).
func (s *Scanner) Between() bool { return s.ended && s.read == 0 && s.block == 0 }

// AwaitsMore reports whether the preface, a header block, the header of a frame
// or a frame other than DATA is incomplete.
func (s *Scanner) AwaitsMore() bool {
	return s.Preface > 0 || s.block > 0 || s.read > 0 && (s.read < headerLength || s.header[3] != typeData)
}

// BlockSize returns the size in bytes of the header block that is open, with
// the headers of its frames. It is 0 if there is none.
func (s *Scanner) BlockSize() int { return s.block }
