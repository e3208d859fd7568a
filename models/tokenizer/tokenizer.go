package tokenizer

import (
	"sync"
	"unicode/utf8"
)

// Tokenizer is a loaded tokenizer.json with what the files beside it say about
// special tokens and chat templates. It is immutable and safe for concurrent
// use.
type Tokenizer struct {
	vocab *vocabulary
	added *addedVocabulary
	norm  normalizer // nil: text is taken as it is
	pre   []preTokenizer
	model model
	post  postProcessor
	dec   decoder // nil: tokens are joined by blanks
	size  int
	// asksFirst says that a pre-tokenizer wants to know which piece is first.
	asksFirst bool
	config    config
	files     source
	workers   sync.Pool
	// compiled are the chat templates used so far, by name.
	compiled sync.Map
}

// model turns one pre-tokenized piece of text, never empty, into ids.
type model interface {
	appendIDs(dst []int32, piece string, w *worker) []int32
}

// EncodeOptions changes how text is encoded. The zero value encodes the text
// alone and recognises special tokens that are written out in it.
type EncodeOptions struct {
	// AddSpecialTokens adds what the post-processor of tokenizer.json adds:
	// <s>, [CLS] and [SEP], nothing for many models.
	AddSpecialTokens bool
	// SpecialTokensAsText encodes special tokens that occur in the text as
	// plain text. It keeps user input from smuggling in control tokens.
	SpecialTokensAsText bool
}

// Encoding is a sequence of ids with the segment each belongs to.
type Encoding struct {
	IDs     []int32
	TypeIDs []int32 // same length as IDs; BERT's token_type_ids
}

// Encode returns the ids of text.
func (t *Tokenizer) Encode(text string, o EncodeOptions) []int32 {
	ids := t.encodeText(text, o)
	return t.post.process([]Encoding{{IDs: ids}}, o.AddSpecialTokens).IDs
}

// EncodePair returns the ids of two texts put together by the post-processor's
// template for pairs, for example [CLS] a [SEP] b [SEP].
func (t *Tokenizer) EncodePair(a, b string, o EncodeOptions) Encoding {
	first, second := t.encodeText(a, o), t.encodeText(b, o)
	return t.post.process([]Encoding{
		{IDs: first, TypeIDs: make([]int32, len(first))},
		{IDs: second, TypeIDs: filled(len(second), 1)},
	}, o.AddSpecialTokens)
}

// encodeText encodes text without the post-processor.
func (t *Tokenizer) encodeText(text string, o EncodeOptions) []int32 {
	if !utf8.ValidString(text) {
		text = lossyUTF8(text)
	}
	w := t.worker()
	w.out = make([]int32, 0, len(text)/3+8)
	t.added.raw.split(text, o.SpecialTokensAsText, func(s string, start int, id int32) {
		if id >= 0 {
			w.out = append(w.out, id)
			return
		}
		t.encodeRaw(s, start == 0, o, w)
	})
	ids := w.out
	w.out = nil
	t.workers.Put(w)
	return ids
}

// encodeRaw encodes a stretch of text that holds no unnormalized added token.
// first says that it begins the whole text.
func (t *Tokenizer) encodeRaw(s string, first bool, o EncodeOptions, w *worker) {
	if t.norm != nil {
		first = first && (!t.asksFirst || keepsStart(t.norm, s))
		s = t.norm.normalize(s)
	}
	t.added.normalized.split(s, o.SpecialTokensAsText, func(s string, start int, id int32) {
		switch {
		case id >= 0:
			w.out = append(w.out, id)
		case s != "":
			w.chain(s, first && start == 0)
		}
	})
}

// VocabSize is the largest id plus one, added tokens included. The embedding
// matrix of a model has at least that many rows, often more.
func (t *Tokenizer) VocabSize() int { return t.size }

// ID returns the id of a token as it is written in tokenizer.json (byte-level
// BPE writes a blank as "Ġ").
func (t *Tokenizer) ID(token string) (int32, bool) {
	if id, ok := t.added.ids[token]; ok {
		return id, true
	}
	return t.vocab.id(token)
}

// Token returns the token with this id as it is written in tokenizer.json.
// [Tokenizer.Decode] gives its text.
func (t *Tokenizer) Token(id int32) (string, bool) {
	if a, ok := t.added.byID[id]; ok {
		return a.Content, true
	}
	return t.vocab.token(id)
}

// IsSpecial says whether id is a special token, one that
// [DecodeOptions].SkipSpecialTokens leaves out.
func (t *Tokenizer) IsSpecial(id int32) bool {
	token, ok := t.Token(id)
	return ok && t.added.special[token]
}

func filled(n int, v int32) []int32 {
	s := make([]int32, n)
	for i := range s {
		s[i] = v
	}
	return s
}
