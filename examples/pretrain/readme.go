package main

import (
	"fmt"

	"github.com/gopeft/gopeft/train"
)

// readme describes the folder. Its line "held-out loss" is checked by a test.
func readme(s settings, loss float64, result *train.Result) string {
	return fmt.Sprintf(`# A tiny base model

A Llama of 0.36 M parameters in float32 with a byte-level BPE tokenizer of %d tokens. It tells little stories in which
people put things somewhere and look for them again. Everything in this folder was made by one command,

    go run ./examples/pretrain

which writes %d such stories with a small grammar of its own (examples/pretrain/grammar.go, seed %d), learns the tokenizer
from them and trains the model on them with this library: %d steps of %d rows of %d tokens, AdamW, peak rate %g,
cosine schedule. It took %.0f s. Another run on the same backend gives the same numbers up to rounding.

held-out loss %.4f (nats a token, mean over %d stories of seed %d)

License: that of the repository.
`, s.Vocabulary, s.Stories, s.Seed, s.Steps, s.Batch, rowLength, s.LearningRate, result.Seconds, loss, s.Held, s.Seed+1)
}
