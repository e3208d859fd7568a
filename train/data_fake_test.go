package train

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/models/tokenizer"
)

// wordTokenizer takes the longest word it knows, else one byte. A byte has the
// id 10 more than itself, the i-th word 1000+i. It puts bos before a sequence.
type wordTokenizer struct {
	words []string
	noEOS bool
	// render is the chat template; nil: chatML.
	render func(messages []tokenizer.Message, generationPrompt bool) (string, error)
}

const (
	wordBOS, wordEOS = 1, 2
	endOfTurn        = "<|end|>" // encodes as wordEOS
)

func (t wordTokenizer) Encode(text string, options tokenizer.EncodeOptions) []int32 {
	var ids []int32
	if options.AddSpecialTokens {
		ids = append(ids, wordBOS)
	}
	for text != "" {
		if rest, ok := strings.CutPrefix(text, endOfTurn); ok {
			ids, text = append(ids, wordEOS), rest
			continue
		}
		best := -1
		for i, w := range t.words {
			if strings.HasPrefix(text, w) && (best < 0 || len(w) > len(t.words[best])) {
				best = i
			}
		}
		if best < 0 {
			ids, text = append(ids, int32(text[0])+10), text[1:]
		} else {
			ids, text = append(ids, int32(1000+best)), text[len(t.words[best]):]
		}
	}
	return ids
}

func (t wordTokenizer) EOS() (int32, bool) { return wordEOS, !t.noEOS }

func (t wordTokenizer) ApplyChatTemplate(messages []tokenizer.Message, options tokenizer.ChatOptions) (string, error) {
	if t.render != nil {
		return t.render(messages, options.AddGenerationPrompt)
	}
	text, err := chatML(messages, options.AddGenerationPrompt)
	if options.Tools != nil {
		text = fmt.Sprintf("%s\n", options.Tools) + text
	}
	return text, err
}

// chatML writes turns as "[role]\ncontent<|end|>\n".
func chatML(messages []tokenizer.Message, generationPrompt bool) (string, error) {
	var b strings.Builder
	for _, m := range messages {
		if m.Extra["tool_calls"] != nil {
			m.Content = fmt.Sprintf("%s", m.Extra["tool_calls"])
		}
		if m.Role == "nobody" {
			return "", errors.New("unknown role nobody")
		}
		fmt.Fprintf(&b, "[%s]\n%s%s\n", m.Role, m.Content, endOfTurn)
	}
	if generationPrompt {
		b.WriteString("[assistant]\n")
	}
	return b.String(), nil
}

// marked writes an example as text with its targets in braces: "<s>ab{c</s>}".
func (t wordTokenizer) marked(e Example) string {
	var b strings.Builder
	for i, id := range e.IDs {
		target := i > 0 && e.Labels[i] != IgnoreIndex
		if target && e.Labels[i] != id {
			return fmt.Sprintf("label %d of token %d", e.Labels[i], id)
		}
		before := i > 1 && e.Labels[i-1] != IgnoreIndex
		switch {
		case target && !before:
			b.WriteString("{")
		case !target && before:
			b.WriteString("}")
		}
		b.WriteString(t.token(id))
		if target && i == len(e.IDs)-1 {
			b.WriteString("}")
		}
	}
	return b.String()
}

func (t wordTokenizer) token(id int32) string {
	switch {
	case id == wordBOS:
		return "<s>"
	case id == wordEOS:
		return "</s>"
	case id >= 1000:
		return "(" + t.words[id-1000] + ")"
	}
	return string([]byte{byte(id - 10)})
}

// examplesOf makes examples of the given lengths; token j of example i is 100*i+j+1.
func examplesOf(lengths ...int) []Example {
	examples := make([]Example, len(lengths))
	for i, n := range lengths {
		for j := range n {
			examples[i].IDs = append(examples[i].IDs, int32(100*i+j+1))
		}
		examples[i].Labels = slices.Clone(examples[i].IDs)
	}
	return examples
}
