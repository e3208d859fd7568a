package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// tokenizerFile is the top level of tokenizer.json.
type tokenizerFile struct {
	Version       *string         `json:"version"`
	AddedTokens   []AddedToken    `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         json.RawMessage `json:"model"`
}

// bpeConfig is the model section of type BPE.
type bpeConfig struct {
	Dropout      *float64         `json:"dropout"`
	Unk          *string          `json:"unk_token"`
	Prefix       *string          `json:"continuing_subword_prefix"`
	Suffix       *string          `json:"end_of_word_suffix"`
	FuseUnk      bool             `json:"fuse_unk"`
	ByteFallback bool             `json:"byte_fallback"`
	IgnoreMerges bool             `json:"ignore_merges"`
	Vocab        map[string]int64 `json:"vocab"`
	Merges       mergeList        `json:"merges"`
}

// newFromJSON builds everything that tokenizer.json alone decides. extra are
// added tokens that tokenizer_config.json lists.
func newFromJSON(data []byte, extra []AddedToken) (*Tokenizer, error) {
	var f tokenizerFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	if f.Version != nil && *f.Version != "1.0" {
		return nil, fmt.Errorf("version is %q, wanted \"1.0\"", *f.Version)
	}
	if isNull(f.Model) {
		return nil, errors.New("there is no model section")
	}
	t := &Tokenizer{}
	var err error
	if t.norm, err = parseNormalizer(f.Normalizer, 0); err != nil {
		return nil, fmt.Errorf("normalizer: %w", err)
	}
	if t.pre, err = parsePreTokenizers(f.PreTokenizer, 0); err != nil {
		return nil, fmt.Errorf("pre_tokenizer: %w", err)
	}
	if t.vocab, t.model, err = parseModel(f.Model); err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if t.dec, err = parseDecoder(f.Decoder, 0); err != nil {
		return nil, fmt.Errorf("decoder: %w", err)
	}
	if t.post, err = parsePostProcessor(f.PostProcessor, 0); err != nil {
		return nil, fmt.Errorf("post_processor: %w", err)
	}
	if t.added, err = newAddedVocabulary(append(f.AddedTokens, extra...), t.vocab, t.norm); err != nil {
		return nil, fmt.Errorf("added_tokens: %w", err)
	}
	t.size = int(max(t.vocab.maxID, t.added.maxID)) + 1
	for _, pre := range t.pre {
		if m, ok := pre.(*metaspaceSplit); ok && m.scheme == "first" {
			t.asksFirst = true
		}
	}
	t.joinBPE()
	return t, nil
}

// joinBPE lets a BPE model work on raw bytes after ByteLevel, or on words where
// no pre-tokenizer makes any.
func (t *Tokenizer) joinBPE() {
	m, ok := t.model.(*bpe)
	if !ok {
		return
	}
	if n := len(t.pre); n > 0 {
		if last, ok := t.pre[n-1].(*byteLevelSplit); ok && m.useBytes() {
			last.raw = true
		}
	}
	if m.bound != nil {
		t.pre = append(t.pre, m.bound)
	}
}

func parseModel(raw json.RawMessage) (*vocabulary, model, error) {
	kind, err := modelType(raw)
	if err != nil {
		return nil, nil, err
	}
	switch kind {
	case "BPE":
		var c bpeConfig
		if err := json.Unmarshal(raw, &c); err != nil {
			return nil, nil, err
		}
		return build(c.Vocab, func(v *vocabulary) (model, error) { return newBPE(v, &c) })
	case "WordPiece":
		c := wordPieceConfig{Prefix: "##", MaxChars: 100}
		if err := json.Unmarshal(raw, &c); err != nil {
			return nil, nil, err
		}
		return build(c.Vocab, func(v *vocabulary) (model, error) { return newWordPiece(v, &c) })
	case "WordLevel":
		var c wordLevelConfig
		if err := json.Unmarshal(raw, &c); err != nil {
			return nil, nil, err
		}
		return build(c.Vocab, func(v *vocabulary) (model, error) { return newWordLevel(v, &c) })
	case "Unigram":
		var c unigramConfig
		if err := json.Unmarshal(raw, &c); err != nil {
			return nil, nil, err
		}
		return newUnigram(&c)
	}
	return nil, nil, fmt.Errorf("type %q is not supported; supported are BPE, Unigram, WordLevel, WordPiece", kind)
}

// build makes the vocabulary and the model on it.
func build(ids map[string]int64, newModel func(*vocabulary) (model, error)) (*vocabulary, model, error) {
	v, err := newVocabulary(ids)
	if err != nil {
		return nil, nil, err
	}
	m, err := newModel(v)
	return v, m, err
}

// modelType reads the model's type. Old files have none; then the fields tell.
func modelType(raw json.RawMessage) (string, error) {
	var c struct {
		Type     string
		Merges   json.RawMessage
		Vocab    json.RawMessage
		MaxChars json.RawMessage `json:"max_input_chars_per_word"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return "", err
	}
	switch {
	case c.Type != "":
		return c.Type, nil
	case c.Merges != nil:
		return "BPE", nil
	case c.MaxChars != nil:
		return "WordPiece", nil
	case len(c.Vocab) > 0 && c.Vocab[0] == '[':
		return "Unigram", nil
	}
	return "", errors.New("no type")
}

// maxNesting bounds Sequence inside Sequence.
const maxNesting = 16

// componentType reads the type of a normalizer, pre-tokenizer, post-processor or decoder.
func componentType(raw json.RawMessage, depth int) (string, error) {
	if depth > maxNesting {
		return "", fmt.Errorf("sequences are nested more than %d deep", maxNesting)
	}
	var c struct{ Type string }
	if err := json.Unmarshal(raw, &c); err != nil {
		return "", err
	}
	if c.Type == "" {
		return "", errors.New("a component has no type")
	}
	return c.Type, nil
}

func isNull(raw json.RawMessage) bool {
	return len(raw) == 0 || bytes.Equal(raw, []byte("null"))
}

// parseMerges returns the merges in the form they are written in: lines or pairs.
func parseMerges(data []byte) (lines []string, pairs [][]string, err error) {
	rest := bytes.TrimLeft(data, " \t\r\n[")
	if bytes.HasPrefix(rest, []byte(`"`)) && !bytes.HasPrefix(bytes.TrimLeft(data[1:], " \t\r\n"), []byte("[")) {
		err = json.Unmarshal(data, &lines)
	} else {
		err = json.Unmarshal(data, &pairs)
	}
	return lines, pairs, err
}

// pattern is the pattern field of Split and Replace: a literal or a regular expression.
type pattern struct {
	String *string
	Regex  *string
}

// UnmarshalJSON also takes the plain string of old files, a literal.
func (p *pattern) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		return json.Unmarshal(data, &p.String)
	}
	type plain pattern
	return json.Unmarshal(data, (*plain)(p))
}
