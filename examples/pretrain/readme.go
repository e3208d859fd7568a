package main

import (
	"fmt"

	"github.com/gopeft/gopeft/examples/pretrain/world"
	"github.com/gopeft/gopeft/train"
)

// readme describes the folder. Its line "held-out loss" is checked by a test.
func readme(s settings, backend string, loss float64, result *train.Result) string {
	return fmt.Sprintf(`# A tiny base model

A Llama of 0.34 M parameters in float32 with a byte-level BPE tokenizer of %d tokens. It tells little stories about %d people
of a made-up world and knows six facts about each: where they live, their work, food, pet, colour and instrument. Everything
in this folder was made by one command,

    go run ./examples/pretrain

which writes %d stories with a small grammar of its own (examples/pretrain/grammar.go, seed %d), learns the tokenizer
from them and trains the model on them with this library: %d steps of %d rows of %d tokens, AdamW, peak rate %g, cosine
schedule. It took %.0f s on %s. Another run writes the same text and the same tokenizer; the weights may differ by what
rounding grows to.

held-out loss %.4f (nats a token, mean over %d stories of seed %d)

License: that of the repository.
`, s.Vocabulary, len(world.People()), s.Stories, s.Seed, s.Steps, s.Batch, positions, s.LearningRate, result.Seconds, backend, loss, s.Held, s.Seed+1)
}
