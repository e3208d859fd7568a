package prefixtuning

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// from returns what a new prompt starts with.
func (s start) from(t site.Transformer, virtual int) (func(r *rand.Rand, values []float32) error, error) {
	switch s.init {
	case InitText:
		ids, err := s.tokens(t)
		if err != nil {
			return nil, err
		}
		rows := make([]int, virtual)
		for i := range rows {
			rows[i] = int(ids[i%len(ids)])
		}
		return func(_ *rand.Rand, values []float32) error { return lookUp(t, rows, values) }, nil
	case InitSampleVocab:
		return func(r *rand.Rand, values []float32) error {
			rows := make([]int, virtual)
			for i := range rows {
				rows[i] = r.IntN(t.Words().In)
			}
			return lookUp(t, rows, values)
		}, nil
	}
	return normal, nil
}

// tokens encodes the text with the tokenizer that is named, special tokens included as in peft.
func (s start) tokens(base site.Base) ([]int32, error) {
	if len(s.kwargs) > 0 {
		return nil, fmt.Errorf("tokenizer_kwargs are Python's alone: remove them to start from a text")
	}
	const file = "tokenizer.json"
	if *s.tokenizer == "" {
		dir := base.NameOrPath()
		if _, err := os.Stat(filepath.Join(dir, file)); dir == "" || err != nil {
			return nil, fmt.Errorf("prompt text without tokenizer: set tokenizer_name_or_path to a folder with %s (the base has none)", file)
		}
		*s.tokenizer = Text(dir)
	}
	if _, err := os.Stat(filepath.Join(string(*s.tokenizer), file)); err != nil {
		return nil, fmt.Errorf("prompt text without tokenizer: tokenizer_name_or_path %q is no folder with %s: %w", *s.tokenizer, file, fs.ErrNotExist)
	}
	tok, err := tokenizer.Load(string(*s.tokenizer))
	if err != nil {
		return nil, fmt.Errorf("tokenizer of the prompt text: %w", err)
	}
	ids := tok.Encode(string(s.text), tokenizer.EncodeOptions{AddSpecialTokens: true})
	if len(ids) == 0 {
		return nil, fmt.Errorf("prompt_tuning_init_text %q has no token", s.text)
	}
	return ids, nil
}

// lookUp copies embeddings of tokens as the model sees them.
func lookUp(t site.Transformer, rows []int, values []float32) error {
	found, err := peft.ReadRows(t, t.Words(), rows)
	if err != nil {
		return err
	}
	scale := float32(t.WordScale())
	for i, v := range found {
		values[i] = scale * v
	}
	return nil
}
