package tokenizer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// precompiled is SentencePiece's normalization rules: a darts-clone double
// array that maps a text to an offset in a block of zero-terminated strings.
type precompiled struct {
	units []uint32
	texts string
	ascii [128]string // what a single ASCII character becomes
}

// newPrecompiled reads a charsmap: the size of the double array in bytes, the
// array (both little endian), the strings.
func newPrecompiled(data []byte) (*precompiled, error) {
	if len(data) < 4 {
		return nil, errors.New("precompiled_charsmap is missing or shorter than 4 bytes")
	}
	size := binary.LittleEndian.Uint32(data)
	rest := data[4:]
	if uint64(size) > uint64(len(rest)) || size%4 != 0 || size == 0 {
		return nil, fmt.Errorf("precompiled_charsmap says its table has %d bytes, but %d follow", size, len(rest))
	}
	p := &precompiled{units: make([]uint32, size/4), texts: string(rest[size:])}
	if !utf8.ValidString(p.texts) {
		return nil, errors.New("precompiled_charsmap holds texts that are not UTF-8")
	}
	for i := range p.units {
		p.units[i] = binary.LittleEndian.Uint32(rest[4*i:])
	}
	for c := range p.ascii {
		s := string(rune(c))
		p.ascii[c] = s
		if to, ok := p.transform(s); ok {
			p.ascii[c] = to
		}
	}
	return p, nil
}

// transform looks up the shortest prefix of s that has a rule. (The longest
// would be expected; the library takes the first, and ids depend on it.)
func (p *precompiled) transform(s string) (string, bool) {
	pos, ok := p.follow(0, 0)
	for i := 0; ok && i < len(s) && s[i] != 0; i++ {
		pos ^= uint32(s[i])
		if int64(pos) >= int64(len(p.units)) || p.units[pos]&(1<<31|0xFF) != uint32(s[i]) {
			return "", false
		}
		leaf := p.units[pos]>>8&1 == 1
		if pos, ok = p.follow(pos, pos); ok && leaf {
			return p.text(p.units[pos] & (1<<31 - 1))
		}
	}
	return "", false
}

// follow returns base xor the offset stored at unit, if that is inside the table.
func (p *precompiled) follow(unit, base uint32) (uint32, bool) {
	u := p.units[unit]
	pos := base ^ (u >> 10 << (u & (1 << 9) >> 6))
	return pos, int64(pos) < int64(len(p.units))
}

// text is the zero-terminated string at offset.
func (p *precompiled) text(offset uint32) (string, bool) {
	if int64(offset) > int64(len(p.texts)) {
		return "", false
	}
	s := p.texts[offset:]
	if end := strings.IndexByte(s, 0); end >= 0 {
		s = s[:end]
	}
	return s, utf8.ValidString(s)
}

func (p *precompiled) normalize(s string) string {
	var b strings.Builder
	b.Grow(len(s) + len(s)/8)
	for s != "" {
		// Between two ASCII characters there is always a grapheme boundary,
		// except in \r\n.
		if c := s[0]; c < 0x80 && (len(s) == 1 || s[1] < 0x80 && !(c == '\r' && s[1] == '\n')) {
			b.WriteString(p.ascii[c])
			s = s[1:]
			continue
		}
		cluster, rest, _, _ := uniseg.FirstGraphemeClusterInString(s, -1)
		p.cluster(&b, cluster)
		s = rest
	}
	return b.String()
}

// cluster looks a short grapheme cluster up whole first, then its characters.
func (p *precompiled) cluster(b *strings.Builder, cluster string) {
	if len(cluster) < 6 {
		if to, ok := p.transform(cluster); ok {
			b.WriteString(to)
			return
		}
	}
	for _, r := range cluster {
		c := string(r)
		if to, ok := p.transform(c); ok {
			c = to
		}
		b.WriteString(c)
	}
}
