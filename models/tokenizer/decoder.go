package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// DecodeOptions changes how ids become text. The zero value writes everything.
type DecodeOptions struct {
	// SkipSpecialTokens leaves special tokens out.
	SkipSpecialTokens bool
}

// Decode returns the text of ids. Ids that are no token are left out.
func (t *Tokenizer) Decode(ids []int32, o DecodeOptions) string {
	tokens := make([]string, 0, len(ids))
	for _, id := range ids {
		if token, ok := t.visible(id, o); ok {
			tokens = append(tokens, token)
		}
	}
	if t.dec == nil {
		return strings.Join(tokens, " ")
	}
	return strings.Join(t.dec.decode(tokens), "")
}

// visible returns the token of id, false if it is not to be decoded.
func (t *Tokenizer) visible(id int32, o DecodeOptions) (string, bool) {
	token, ok := t.Token(id)
	if !ok || o.SkipSpecialTokens && t.added.special[token] {
		return "", false
	}
	return token, true
}

// decoder turns tokens into texts, which are then joined.
type decoder interface {
	decode(tokens []string) []string
	// stream returns the decoder's incremental form, which passes text on to next.
	stream(next sink) sink
}

// decoderConfig has the fields of all types.
type decoderConfig struct {
	Decoders []json.RawMessage `json:"decoders"`
	Pattern  *pattern          `json:"pattern"`
	Content  *string           `json:"content"`
	Start    int               `json:"start"`
	Stop     int               `json:"stop"`
	Prefix   *string           `json:"prefix"`
	Cleanup  *bool             `json:"cleanup"`
	Suffix   *string           `json:"suffix"`
	metaspaceConfig
}

func parseDecoder(raw json.RawMessage, depth int) (decoder, error) {
	if isNull(raw) {
		return nil, nil
	}
	kind, err := componentType(raw, depth)
	if err != nil {
		return nil, err
	}
	var c decoderConfig
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	d, err := newDecoder(kind, &c, depth)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind, err)
	}
	return d, nil
}

func newDecoder(kind string, c *decoderConfig, depth int) (decoder, error) {
	switch kind {
	case "Sequence":
		var all decoders
		for _, raw := range c.Decoders {
			d, err := parseDecoder(raw, depth+1)
			if err != nil {
				return nil, err
			}
			if d != nil {
				all = append(all, d)
			}
		}
		return all, nil
	case "ByteLevel":
		return byteLevelDecoder{}, nil
	case "ByteFallback":
		return byteFallbackDecoder{}, nil
	case "Fuse":
		return fuseDecoder{}, nil
	case "Replace":
		r, err := newReplace(c.Pattern, c.Content)
		if err != nil {
			return nil, err
		}
		return tokenDecoder(func(_ int, token string) string { return r.normalize(token) }), nil
	case "Strip":
		return newStripDecoder(c)
	case "Metaspace":
		m, err := newMetaspace(&c.metaspaceConfig)
		if err != nil {
			return nil, err
		}
		return tokenDecoder(m.decodeToken), nil
	case "WordPiece":
		return newWordPieceDecoder(c), nil
	case "BPEDecoder":
		return suffixDecoder(orDefault(c.Suffix, "</w>")), nil
	}
	return nil, errors.New("this type is not supported")
}

func orDefault(s *string, missing string) string {
	if s == nil {
		return missing
	}
	return *s
}

// decoders is Sequence.
type decoders []decoder

func (d decoders) decode(tokens []string) []string {
	for _, one := range d {
		tokens = one.decode(tokens)
	}
	return tokens
}

// tokenDecoder maps each token by itself, given its index.
type tokenDecoder func(i int, token string) string

func (d tokenDecoder) decode(tokens []string) []string {
	for i, token := range tokens {
		tokens[i] = d(i, token)
	}
	return tokens
}

// byteLevelDecoder joins the bytes of all tokens.
type byteLevelDecoder struct{}

func (byteLevelDecoder) decode(tokens []string) []string {
	var b []byte
	for _, token := range tokens {
		b = fromByteLevel(b, token)
	}
	return []string{lossyUTF8(string(b))}
}

// byteFallbackDecoder turns runs of <0xXX> into text, or into one U+FFFD a byte
// if the run is not UTF-8.
type byteFallbackDecoder struct{}

func (byteFallbackDecoder) decode(tokens []string) []string {
	var out []string
	var run []byte
	for _, token := range tokens {
		if b, ok := byteToken(token); ok {
			run = append(run, b)
			continue
		}
		out = appendRun(out, run)
		run = run[:0]
		out = append(out, token)
	}
	return appendRun(out, run)
}

func appendRun(out []string, run []byte) []string {
	if len(run) == 0 {
		return out
	}
	if utf8.Valid(run) {
		return append(out, string(run))
	}
	for range run {
		out = append(out, replacement)
	}
	return out
}

// byteToken reads <0xXX>.
func byteToken(token string) (byte, bool) {
	if len(token) != 6 || !strings.HasPrefix(token, "<0x") || token[5] != '>' {
		return 0, false
	}
	digits := token[3:5]
	if digits[0] == '+' { // Rust's number parser takes a sign
		digits = digits[1:]
	}
	b, err := strconv.ParseUint(digits, 16, 8)
	return byte(b), err == nil
}

// fuseDecoder joins all tokens.
type fuseDecoder struct{}

func (fuseDecoder) decode(tokens []string) []string { return []string{strings.Join(tokens, "")} }

// stripDecoder cuts up to start and stop times content off the ends of each token.
type stripDecoder struct {
	content     string
	start, stop int
}

func newStripDecoder(c *decoderConfig) (decoder, error) {
	if c.Content == nil || utf8.RuneCountInString(*c.Content) != 1 {
		return nil, errors.New("content is not one character")
	}
	return stripDecoder{*c.Content, c.Start, c.Stop}, nil
}

func (d stripDecoder) decode(tokens []string) []string {
	return tokenDecoder(func(_ int, token string) string { return d.strip(token) }).decode(tokens)
}

func (d stripDecoder) strip(token string) string {
	for range d.start {
		rest, ok := strings.CutPrefix(token, d.content)
		if !ok {
			break
		}
		token = rest
	}
	for range d.stop {
		rest, ok := strings.CutSuffix(token, d.content)
		if !ok {
			break
		}
		token = rest
	}
	return token
}

// decodeToken writes marks as blanks; the first token loses its own.
func (m *metaspaceSplit) decodeToken(i int, token string) string {
	if i == 0 && m.scheme != "never" {
		return strings.ReplaceAll(token, m.mark, "")
	}
	return strings.ReplaceAll(token, m.mark, " ")
}

// wordPieceCleanup undoes the blanks of BERT's tokenization of English.
var wordPieceCleanup = []string{
	" .", ".", " ?", "?", " !", "!", " ,", ",", " ' ", "'", " n't", "n't",
	" 'm", "'m", " do not", " don't", " 's", "'s", " 've", "'ve", " 're", "'re",
}

func newWordPieceDecoder(c *decoderConfig) tokenDecoder {
	prefix, cleanup := orDefault(c.Prefix, "##"), c.Cleanup == nil || *c.Cleanup
	return func(i int, token string) string {
		if i > 0 {
			rest, ok := strings.CutPrefix(token, prefix)
			if !ok {
				rest = " " + token
			}
			token = rest
		}
		for j := 0; cleanup && j < len(wordPieceCleanup); j += 2 {
			token = strings.ReplaceAll(token, wordPieceCleanup[j], wordPieceCleanup[j+1])
		}
		return token
	}
}

// suffixDecoder is BPEDecoder: the end-of-word suffix becomes a blank, at the
// end nothing.
type suffixDecoder string

func (d suffixDecoder) decode(tokens []string) []string {
	for i, token := range tokens {
		blank := " "
		if i == len(tokens)-1 {
			blank = ""
		}
		tokens[i] = strings.ReplaceAll(token, string(d), blank)
	}
	return tokens
}
