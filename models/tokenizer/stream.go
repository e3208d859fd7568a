package tokenizer

import "strings"

// Stream decodes ids one after the other. It gives out only text that no later
// id can change, so that all of it together is what Decode gives for all ids.
// A Stream is not safe for concurrent use.
type Stream struct {
	t     *Tokenizer
	o     DecodeOptions
	first sink
	out   strings.Builder
}

// NewStream starts decoding anew.
func (t *Tokenizer) NewStream(o DecodeOptions) *Stream {
	s := &Stream{t: t, o: o}
	s.first = &outSink{b: &s.out}
	if t.dec == nil {
		s.first = &joinSink{next: s.first}
	} else {
		s.first = t.dec.stream(s.first)
	}
	return s
}

// Add returns the text that id settles. It may be empty: a part of a character
// waits for the rest, and a byte token for the end of its run.
func (s *Stream) Add(id int32) string {
	if token, ok := s.t.visible(id, s.o); ok {
		s.first.token(token)
	}
	return s.take()
}

// Flush returns what is left and makes the stream ready for a new text.
func (s *Stream) Flush() string {
	s.first.close()
	return s.take()
}

func (s *Stream) take() string {
	text := s.out.String()
	s.out.Reset()
	return text
}

// sink is one step of streamed decoding. It receives either whole tokens or,
// after a step that joins all tokens to one, that token in fragments. After
// close it is as new.
type sink interface {
	token(text string)
	fragment(text string)
	close()
}

// outSink is the end of the chain.
type outSink struct{ b *strings.Builder }

func (s *outSink) token(text string)    { s.b.WriteString(text) }
func (s *outSink) fragment(text string) { s.b.WriteString(text) }
func (s *outSink) close()               {}

// joinSink puts a blank between tokens, as Decode does without a decoder.
type joinSink struct {
	next sink
	any  bool
}

func (s *joinSink) token(text string) {
	if s.any {
		text = " " + text
	}
	s.any = true
	s.next.token(text)
}
func (s *joinSink) fragment(text string) { s.next.fragment(text) }
func (s *joinSink) close()               { s.any = false; s.next.close() }

// whole collects fragments: most steps need the token as a whole.
type whole struct {
	b   strings.Builder
	any bool
}

func (w *whole) fragment(text string) {
	w.b.WriteString(text)
	w.any = true
}

// take returns the token, false if there were no fragments.
func (w *whole) take() (string, bool) {
	text, any := w.b.String(), w.any
	w.b.Reset()
	w.any = false
	return text, any
}

func (d decoders) stream(next sink) sink {
	for i := len(d) - 1; i >= 0; i-- {
		next = d[i].stream(next)
	}
	return next
}

// tokenSink is tokenDecoder's.
type tokenSink struct {
	whole
	d    tokenDecoder
	next sink
	i    int
}

func (d tokenDecoder) stream(next sink) sink { return &tokenSink{d: d, next: next} }

func (s *tokenSink) token(text string) {
	s.next.token(s.d(s.i, text))
	s.i++
}

func (s *tokenSink) close() {
	if text, ok := s.take(); ok {
		s.token(text)
	}
	s.i = 0
	s.next.close()
}

// fuseSink is fuseDecoder's.
type fuseSink struct{ next sink }

func (fuseDecoder) stream(next sink) sink { return &fuseSink{next} }
func (s *fuseSink) token(text string)     { s.next.fragment(text) }
func (s *fuseSink) fragment(text string)  { s.next.fragment(text) }
func (s *fuseSink) close()                { s.next.close() }

// byteLevelSink is byteLevelDecoder's. It holds back the start of a character.
type byteLevelSink struct {
	whole
	next    sink
	pending []byte
}

func (byteLevelDecoder) stream(next sink) sink { return &byteLevelSink{next: next} }

func (s *byteLevelSink) token(text string) {
	s.pending = fromByteLevel(s.pending, text)
	if n := completePrefix(string(s.pending)); n > 0 {
		s.next.fragment(lossyUTF8(string(s.pending[:n])))
		s.pending = append(s.pending[:0], s.pending[n:]...)
	}
}

func (s *byteLevelSink) close() {
	if text, ok := s.take(); ok {
		s.token(text)
	}
	if len(s.pending) > 0 {
		s.next.fragment(lossyUTF8(string(s.pending)))
		s.pending = s.pending[:0]
	}
	s.next.close()
}

// byteFallbackSink is byteFallbackDecoder's. It holds back a run of byte tokens:
// one bad byte at its end would change all of it.
type byteFallbackSink struct {
	whole
	next sink
	run  []byte
}

func (byteFallbackDecoder) stream(next sink) sink { return &byteFallbackSink{next: next} }

func (s *byteFallbackSink) token(text string) {
	if b, ok := byteToken(text); ok {
		s.run = append(s.run, b)
		return
	}
	s.endRun()
	s.next.token(text)
}

func (s *byteFallbackSink) endRun() {
	for _, text := range appendRun(nil, s.run) {
		s.next.token(text)
	}
	s.run = s.run[:0]
}

func (s *byteFallbackSink) close() {
	if text, ok := s.take(); ok {
		s.token(text)
	}
	s.endRun()
	s.next.close()
}

// stripSink is stripDecoder's. Of a token in fragments it cuts the start as it
// comes and holds back what may be the end.
type stripSink struct {
	d    stripDecoder
	next sink
	cut  int // how many were cut off the start
	past bool
	held string
}

func (d stripDecoder) stream(next sink) sink { return &stripSink{d: d, next: next} }

func (s *stripSink) token(text string) { s.next.token(s.d.strip(text)) }

func (s *stripSink) fragment(text string) {
	for !s.past && text != "" {
		rest, ok := strings.CutPrefix(text, s.d.content)
		if !ok || s.cut >= s.d.start {
			s.past = true
			break
		}
		text = rest
		s.cut++
	}
	text = s.held + text
	kept := stripDecoder{s.d.content, 0, s.d.stop}.strip(text)
	s.held = text[len(kept):]
	if kept != "" {
		s.next.fragment(kept)
	}
}

func (s *stripSink) close() {
	s.cut, s.past, s.held = 0, false, ""
	s.next.close()
}

// suffixSink is suffixDecoder's. It holds back the last token.
type suffixSink struct {
	whole
	d    suffixDecoder
	next sink
	last string
	any  bool
}

func (d suffixDecoder) stream(next sink) sink { return &suffixSink{d: d, next: next} }

func (s *suffixSink) token(text string) {
	s.emit(" ")
	s.last, s.any = text, true
}

func (s *suffixSink) emit(blank string) {
	if s.any {
		s.next.token(strings.ReplaceAll(s.last, string(s.d), blank))
	}
	s.any = false
}

func (s *suffixSink) close() {
	if text, ok := s.take(); ok {
		s.token(text)
	}
	s.emit("")
	s.next.close()
}
