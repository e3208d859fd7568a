package train

import (
	"fmt"
	"slices"
	"time"
)

// DataOptions says how files become examples. docs/data.md shows the formats.
type DataOptions struct {
	// MaxLength is the number of tokens after which an example is cut off. Zero: 512.
	MaxLength int
	// Fields names the fields of a JSONL file: two for prompt and completion, or one
	// that holds text or a list of chat messages. Zero: "text", or "prompt" and
	// "completion", or "messages", whichever the first line has.
	Fields []string
	// TaskField names the field of a JSONL file with the task of each record, an integer from 0
	// on ("task_id"), for adapters that know several. Zero: none.
	TaskField string
	// Separator is put between prompt and completion; it belongs to the prompt.
	// Zero: nothing.
	Separator string
	// TrainOnPrompts makes targets of prompts, and of all turns of a chat. Zero:
	// only completions and the assistant's turns are learned.
	TrainOnPrompts bool
	// LastTurnOnly learns only the last of the assistant's turns in a chat; those
	// before it are context. Zero: all of them.
	LastTurnOnly bool
	// NoEOS adds no end-of-sequence token to what the tokenizer gives. Zero: the tokenizer's, if it has
	// one, ends every text and completion, so that the model learns to stop. Chats
	// end as their template says.
	NoEOS bool
	// ChatDate is today's date for chat templates that write it (Llama 3.2's). Zero:
	// 26 July 2024, which such templates fall back to; a date that moves would make
	// other data tomorrow.
	ChatDate time.Time
	// Packing puts several examples into one row of MaxLength tokens; see [Dataset.Pack].
	Packing bool
	// Buckets are the lengths that batches are padded to; the largest must hold the
	// longest example. Zero: the powers of two from 64 on, and the length of the
	// longest example rounded up to a multiple of 8. Each length that occurs is
	// compiled once.
	Buckets []int
}

const defaultMaxLength = 512

// withDefaults checks the options and fills in the zero values.
func (o DataOptions) withDefaults() (DataOptions, error) {
	if o.MaxLength == 0 {
		o.MaxLength = defaultMaxLength
	}
	if o.MaxLength < 2 {
		return o, fmt.Errorf("MaxLength is %d, want 2 or more, or 0 for %d", o.MaxLength, defaultMaxLength)
	}
	if o.ChatDate.IsZero() {
		o.ChatDate = time.Date(2024, time.July, 26, 0, 0, 0, 0, time.UTC)
	}
	if len(o.Fields) > 2 || slices.Contains(o.Fields, "") {
		return o, fmt.Errorf("Fields is %q, want the names of one or two fields", o.Fields)
	}
	if len(o.Fields) == 2 && o.Fields[0] == o.Fields[1] {
		return o, fmt.Errorf("Fields names %q twice, want two different fields", o.Fields[0])
	}
	return o, nil
}
