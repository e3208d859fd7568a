package train

import "github.com/gopeft/gopeft/models/tokenizer"

// Tokenizer is what reading data asks of a tokenizer. *tokenizer.Tokenizer is
// one. Its methods are called from several goroutines at a time.
type Tokenizer interface {
	// Encode returns the ids of text, with what the tokenizer puts around a
	// sequence (a beginning-of-sequence token) if the options ask for it.
	Encode(text string, options tokenizer.EncodeOptions) []int32
	// EOS returns the end-of-sequence token, and false if there is none.
	EOS() (id int32, ok bool)
}

func encode(tok Tokenizer, text string, special bool) []int32 {
	return tok.Encode(text, tokenizer.EncodeOptions{AddSpecialTokens: special})
}
