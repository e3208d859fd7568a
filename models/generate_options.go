package models

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// GenerateOptions says how text is generated. The zero value takes the most
// probable token each time and stops at the model's end token or after 64 tokens.
type GenerateOptions struct {
	// MaxNewTokens limits the tokens after the prompt. 0: 64.
	MaxNewTokens int
	// Temperature divides the logits before a token is drawn. 0: no drawing, the
	// largest logit wins; TopK and TopP must then be 0 too.
	Temperature float64
	// TopK draws from the TopK largest logits only (and what equals the last of them). 0: all.
	TopK int
	// TopP draws from the most probable tokens that reach TopP together. 0 or 1: all.
	TopP float64
	// RepetitionPenalty divides positive and multiplies negative logits of tokens
	// that the prompt or the text has already. 0 or 1: none.
	RepetitionPenalty float64
	// Seed of the drawing. A row's numbers depend on Seed, its number and the step
	// alone, not on the rows beside it.
	Seed uint64
	// RowOffset is the number of the first row, so that rows drawn in several calls
	// are those of one call.
	RowOffset int

	// StopTokens end a row; the token ends IDs and is not in Text. nil: the model's
	// end tokens (generation_config.json, config.json). Empty but not nil: none.
	StopTokens []int32
	// StopStrings end a row when its text contains one, wherever tokens begin and
	// end. Text ends before the one that is complete first.
	StopStrings []string

	// Stream, if not nil, receives the text of each row as it grows: only what no
	// later token can change, and nothing of a stop string. All pieces of a row
	// together are its Text. It is called from the goroutine of Generate; its error
	// ends the generation.
	Stream func(row int, text string) error
	// LogProbs asks for [Generation].LogProbs.
	LogProbs bool
	// Tasks is the task of each prompt, for adapters that know several, see [site.Tokens].
	// nil: none.
	Tasks []int32

	// Tokenizer is used instead of the model's own.
	Tokenizer *tokenizer.Tokenizer
	// PromptIsComplete says that prompts given as text have their special tokens,
	// as chat templates do: none is added.
	PromptIsComplete bool
	// KeepSpecialTokens writes special tokens, and the stop token, into the text.
	KeepSpecialTokens bool
}

const defaultMaxNewTokens = 64

// settings are options made complete for one base.
type settings struct {
	GenerateOptions
	stops     stopStrings
	vocab     int
	positions int   // the longest sequence
	virtual   int   // tokens that the view's adapters put before a prompt
	bos       int32 // -1: none is known
}

// settle checks options and fills in defaults.
func (o GenerateOptions) settle(lm site.LanguageModel) (*settings, error) {
	s := &settings{GenerateOptions: o, stops: o.StopStrings, vocab: lm.VocabSize(), positions: lm.MaxPositions(), bos: -1}
	if err := o.check(s.vocab); err != nil {
		return nil, err
	}
	if s.MaxNewTokens == 0 {
		s.MaxNewTokens = defaultMaxNewTokens
	}
	if s.RepetitionPenalty == 0 {
		s.RepetitionPenalty = 1
	}
	m, _ := lm.(*Model)
	if s.Tokenizer == nil && m != nil {
		s.Tokenizer = m.Tokenizer
	}
	if s.Tokenizer == nil && (len(o.StopStrings) > 0 || o.Stream != nil) {
		return nil, errors.New("StopStrings and Stream need a tokenizer, and the model has none")
	}
	if m != nil {
		s.bos = int32(m.Config().BOSTokenID)
	}
	if s.bos < 0 && s.Tokenizer != nil {
		if id, known := s.Tokenizer.BOS(); known {
			s.bos = id
		}
	}
	if s.StopTokens == nil && m != nil {
		for _, id := range m.Config().EOSTokenIDs {
			s.StopTokens = append(s.StopTokens, int32(id))
		}
	}
	if s.StopTokens == nil && s.Tokenizer != nil {
		s.StopTokens = s.Tokenizer.EOSIDs()
	}
	return s, nil
}

func (o GenerateOptions) check(vocab int) error {
	notNumber := func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }
	switch {
	case o.MaxNewTokens < 0:
		return fmt.Errorf("MaxNewTokens: wanted at least 1 (0: %d), got %d", defaultMaxNewTokens, o.MaxNewTokens)
	case o.Temperature < 0 || notNumber(o.Temperature):
		return fmt.Errorf("Temperature: wanted 0 (greedy) or more, got %g", o.Temperature)
	case o.TopK < 0:
		return fmt.Errorf("TopK: wanted at least 1 (0: all), got %d", o.TopK)
	case !(o.TopP >= 0 && o.TopP <= 1):
		return fmt.Errorf("TopP: wanted more than 0 up to 1 (0: all), got %g", o.TopP)
	case o.Temperature == 0 && (o.TopK > 0 || o.TopP > 0):
		return errors.New("TopK and TopP have no effect without a Temperature: set it (1 leaves the probabilities as they are)")
	case o.RepetitionPenalty < 0 || notNumber(o.RepetitionPenalty):
		return fmt.Errorf("RepetitionPenalty: wanted more than 0 (0: none), got %g", o.RepetitionPenalty)
	case o.RowOffset < 0:
		return fmt.Errorf("RowOffset: wanted at least 0, got %d", o.RowOffset)
	}
	for _, id := range o.StopTokens {
		if err := checkID(id, vocab); err != nil {
			return fmt.Errorf("StopTokens: %w", err)
		}
	}
	for _, text := range o.StopStrings {
		if text == "" || !utf8.ValidString(text) {
			return fmt.Errorf("StopStrings: wanted text in UTF-8, got %q", text)
		}
	}
	return nil
}

func checkID(id int32, vocab int) error {
	if id < 0 || int(id) >= vocab {
		return fmt.Errorf("token id %d is outside the vocabulary of %d", id, vocab)
	}
	return nil
}

// greedy reports whether the largest logit of the model is the next token, which
// the program itself finds.
func (s *settings) greedy() bool {
	return s.Temperature == 0 && s.RepetitionPenalty == 1 && !s.LogProbs
}

func (s *settings) stopsAt(id int32) bool { return slices.Contains(s.StopTokens, id) }

// room returns how many tokens may follow a prompt.
func (s *settings) room(prompt []int32) (int, error) {
	if len(prompt) == 0 {
		return 0, errors.New("the prompt is empty, and no beginning-of-sequence token is known to start from")
	}
	for i, id := range prompt {
		if err := checkID(id, s.vocab); err != nil {
			return 0, fmt.Errorf("position %d: %w", i, err)
		}
	}
	used := s.virtual + len(prompt)
	if used >= s.positions {
		taken := ""
		if s.virtual > 0 {
			taken = fmt.Sprintf(", %d of which the adapters take", s.virtual)
		}
		return 0, fmt.Errorf("the prompt has %d tokens, which leaves no room: the model has %d positions%s", len(prompt), s.positions, taken)
	}
	return min(s.MaxNewTokens, s.positions-used), nil
}

// checkTasks reports tasks that the view's adapters do not know.
func checkTasks(view any, tasks []int32, what string) error {
	m, ok := view.(site.Multitask)
	if !ok || m.NumTasks() == 0 {
		return nil
	}
	for i, task := range tasks {
		if task < 0 || int(task) >= m.NumTasks() {
			return fmt.Errorf("%s %d: task %d, but the adapters know %d tasks", what, i, task, m.NumTasks())
		}
	}
	return nil
}

func (s *settings) sampler() *sampler {
	return &sampler{temperature: s.Temperature, topK: s.TopK, topP: s.TopP, penalty: float32(s.RepetitionPenalty)}
}
