package models

import (
	"strings"

	"github.com/gopeft/gopeft/models/tokenizer"
)

// rowText turns a row's new ids into text that follows its prompt's text, and ends
// it before a stop string.
type rowText struct {
	tok     *tokenizer.Tokenizer
	options tokenizer.DecodeOptions
	stream  *tokenizer.Stream
	stops   stopStrings

	ids     []int32 // prompt and new ids
	settled int     // bytes that the stream has given out for them
	held    string  // end of the prompt's text that the stream has not given out yet
	waiting string  // what it gave out since, while shorter than held
	text    strings.Builder
	sent    int // bytes of text given to the user
	stopped bool
}

// newRowText starts a row. Ids are decoded after those of the prompt, since what
// precedes a token can change its text.
func newRowText(s *settings, prompt []int32) *rowText {
	if s.Tokenizer == nil {
		return nil
	}
	r := &rowText{tok: s.Tokenizer, options: tokenizer.DecodeOptions{SkipSpecialTokens: !s.KeepSpecialTokens}, stops: s.stops}
	r.stream = r.tok.NewStream(r.options)
	var given strings.Builder
	for _, id := range prompt {
		given.WriteString(r.stream.Add(id))
	}
	if held, ok := strings.CutPrefix(r.tok.Decode(prompt, r.options), given.String()); ok {
		r.held = held
	}
	r.settled = given.Len()
	if len(r.stops) > 0 {
		r.ids = append(r.ids, prompt...)
	}
	return r
}

// add takes the next id.
func (r *rowText) add(id int32) {
	settled := r.stream.Add(id)
	r.settled += len(settled)
	r.append(settled)
	if len(r.stops) == 0 || r.stopped {
		return
	}
	r.ids = append(r.ids, id)
	if settled == "" {
		r.lookAhead()
	}
}

// lookAhead ends the row if the text that is not settled yet completes a stop
// string: a newline may be a byte token, which waits for the bytes after it.
func (r *rowText) lookAhead() {
	all := r.tok.Decode(r.ids, r.options)
	if len(all) < r.settled {
		return
	}
	rest := r.waiting + all[r.settled:]
	if r.held != "" {
		rest = strings.TrimPrefix(rest, r.held)
	}
	r.findStop(rest)
}

// finish takes what the stream has held back to the end.
func (r *rowText) finish() {
	r.append(r.stream.Flush())
	if r.waiting != "" {
		waiting := r.waiting
		r.waiting, r.held = "", ""
		r.append(waiting)
	}
}

func (r *rowText) append(piece string) {
	if r.stopped || piece == "" {
		return
	}
	if r.held != "" {
		r.waiting += piece
		if len(r.waiting) < len(r.held) {
			return
		}
		// A character that the prompt began belongs to the new text.
		piece = strings.TrimPrefix(r.waiting, r.held)
		r.held, r.waiting = "", ""
	}
	if !r.findStop(piece) {
		r.text.WriteString(piece)
	}
}

// findStop looks for a stop string that piece completes, and ends the text before it.
func (r *rowText) findStop(piece string) bool {
	if len(r.stops) == 0 {
		return false
	}
	all := r.text.String() + piece
	start := r.stops.find(all, r.text.Len())
	if start < 0 {
		return false
	}
	r.stopped = true
	r.text.Reset()
	r.text.WriteString(all[:start])
	return true
}

// take returns the text that the user has not got yet, all of it when the row is
// done, else without what may become a stop string.
func (r *rowText) take(done bool) string {
	text := r.text.String()
	end := len(text)
	if !done && !r.stopped {
		end -= r.stops.begun(text)
	}
	piece := text[r.sent:end]
	r.sent = end
	return piece
}

// stopStrings are texts that end a row.
type stopStrings []string

// find returns where the stop string begins that is complete first in text[from:],
// of several the longest; -1 if there is none. It does not depend on how the text
// was cut into tokens.
func (s stopStrings) find(text string, from int) int {
	if len(s) == 0 {
		return -1
	}
	for end := from + 1; end <= len(text); end++ {
		longest := 0
		for _, stop := range s {
			if len(stop) > longest && strings.HasSuffix(text[:end], stop) {
				longest = len(stop)
			}
		}
		if longest > 0 {
			return end - longest
		}
	}
	return -1
}

// begun returns the length of the longest end of text that begins a stop string.
func (s stopStrings) begun(text string) int {
	longest := 0
	for _, stop := range s {
		for n := min(len(stop)-1, len(text)); n > longest; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				longest = n
			}
		}
	}
	return longest
}
