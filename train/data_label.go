package train

import (
	"slices"
	"unicode/utf8"
)

// labeler turns samples into examples: it decides what becomes a target.
type labeler struct {
	tok     Tokenizer
	options DataOptions
}

// example tokenises a sample and cuts it to the maximum length.
func (l labeler) example(kind sampleKind, s sample) (e Example, truncated bool, err error) {
	switch kind {
	case textSample:
		e = l.text(s.text)
	case promptSample:
		e = l.completion(s.prompt+l.options.Separator, s.completion)
	case chatSample:
		if e, err = l.chat(s.chat); err != nil {
			return e, false, err
		}
	}
	if n := l.options.MaxLength; len(e.IDs) > n {
		return e.truncate(n), true, nil
	}
	return e, false, nil
}

// truncate copies the first n tokens, so that the memory of the rest is freed.
func (e Example) truncate(n int) Example {
	ids := slices.Clone(e.IDs[:n])
	if &e.IDs[0] == &e.Labels[0] {
		return Example{IDs: ids, Labels: ids, Task: e.Task}
	}
	return Example{IDs: ids, Labels: slices.Clone(e.Labels[:n]), Task: e.Task}
}

// text makes every token a target.
func (l labeler) text(text string) Example {
	if text == "" {
		return Example{}
	}
	ids := l.withEOS(encode(l.tok, text, true))
	return Example{IDs: ids, Labels: ids}
}

// completion makes targets of the tokens after the prompt.
func (l labeler) completion(prompt, completion string) Example {
	if completion == "" {
		return Example{}
	}
	ids := l.withEOS(encode(l.tok, prompt+completion, true))
	if l.options.TrainOnPrompts || prompt == "" {
		return Example{IDs: ids, Labels: ids}
	}
	labels := slices.Clone(ids)
	for i := range l.tokensWithin(ids, prompt, true) {
		labels[i] = IgnoreIndex
	}
	return Example{IDs: ids, Labels: labels}
}

func (l labeler) withEOS(ids []int32) []int32 {
	eos, ok := l.tok.EOS()
	if !ok || l.options.NoEOS || len(ids) > 0 && ids[len(ids)-1] == eos {
		return ids
	}
	return append(ids, eos)
}

// longestToken bounds the search of tokensWithin, in characters.
const longestToken = 32

// tokensWithin returns how many of the first tokens of a text lie wholly within
// its beginning prefix. Where the prefix alone is tokenised as in the text, that
// is the number of its tokens. Otherwise a token reaches over the border: then
// it is the most on which the text and some shorter prefix agree, which leaves
// the token on the border out.
func (l labeler) tokensWithin(ids []int32, prefix string, special bool) int {
	alone := encode(l.tok, prefix, special)
	within := commonPrefix(ids, alone)
	if within == len(alone) {
		return within
	}
	for range longestToken {
		_, size := utf8.DecodeLastRuneInString(prefix)
		prefix = prefix[:len(prefix)-size]
		if prefix == "" {
			break
		}
		shorter := encode(l.tok, prefix, special)
		if n := commonPrefix(ids, shorter); n == len(shorter) {
			return max(within, n)
		}
	}
	return within
}

func commonPrefix[T comparable](a, b []T) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}
