package train

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/gopeft/gopeft/models/tokenizer"
)

// chatTokenizer is a [Tokenizer] that can render chats.
type chatTokenizer interface {
	ApplyChatTemplate(messages []tokenizer.Message, options tokenizer.ChatOptions) (string, error)
}

var _ chatTokenizer = (*tokenizer.Tokenizer)(nil)

const assistant = "assistant"

// chat makes targets of the assistant's turns. Where they lie is found by
// rendering the chat up to each of them, with the header that asks for an answer,
// and up to its end. That is right only if each rendering is how the next begins,
// which is checked. What a template writes after the end-of-sequence token of a
// turn (often a line break) is never generated and so no target.
func (l labeler) chat(c chat) (Example, error) {
	if len(c.messages) == 0 {
		return Example{}, nil
	}
	whole, err := l.render(c, len(c.messages), false)
	if err != nil {
		return Example{}, err
	}
	ids := encode(l.tok, whole, false)
	if l.options.TrainOnPrompts {
		return Example{IDs: ids, Labels: ids}, nil
	}
	labels := make([]int32, len(ids))
	for i := range labels {
		labels[i] = IgnoreIndex
	}
	for _, i := range l.learnedTurns(c) {
		header, turn, err := l.turn(c, i, whole)
		if err != nil {
			return Example{}, err
		}
		first := l.tokensWithin(ids, header, false)
		if first >= l.options.MaxLength {
			break // all that follows is cut off
		}
		last := l.endOfTurn(ids, first, l.tokensWithin(ids, turn, false))
		copy(labels[first:last], ids[first:last])
	}
	return Example{IDs: ids, Labels: labels}, nil
}

// learnedTurns returns the indices of the assistant's turns that are learned.
func (l labeler) learnedTurns(c chat) []int {
	var turns []int
	for i, m := range c.messages {
		if m.Role == assistant {
			turns = append(turns, i)
		}
	}
	if l.options.LastTurnOnly && len(turns) > 0 {
		turns = turns[len(turns)-1:]
	}
	return turns
}

// turn returns the beginnings of the whole rendering up to the header of message
// i, after which its text begins, and up to its end.
func (l labeler) turn(c chat, i int, whole string) (header, turn string, err error) {
	if i > 0 {
		if header, err = l.render(c, i, true); err != nil {
			return "", "", err
		}
	}
	if turn, err = l.render(c, i+1, false); err != nil {
		return "", "", err
	}
	if err = beginsWith(turn, header); err == nil {
		err = beginsWith(whole, turn)
	}
	if err != nil {
		return "", "", fmt.Errorf("chat template: cannot tell which tokens are the assistant's in message %d: "+
			"the chat up to it is rendered otherwise than as the beginning of the whole (%w); "+
			"set LastTurnOnly and give each answer a line of its own, with the turns before it", i+1, err)
	}
	return header, turn, nil
}

// endOfTurn moves the end of a turn back to the last end-of-sequence token in it.
func (l labeler) endOfTurn(ids []int32, first, last int) int {
	eos, ok := l.tok.EOS()
	for i := last - 1; ok && i >= first; i-- {
		if ids[i] == eos {
			return i + 1
		}
	}
	return max(first, last)
}

// render renders the first n messages.
func (l labeler) render(c chat, n int, generationPrompt bool) (string, error) {
	tok, ok := l.tok.(chatTokenizer)
	if !ok {
		return "", fmt.Errorf("chat messages: a tokenizer of type %T renders no chats", l.tok)
	}
	text, err := tok.ApplyChatTemplate(c.messages[:n], tokenizer.ChatOptions{
		AddGenerationPrompt: generationPrompt,
		Tools:               c.tools,
		Now:                 l.options.ChatDate,
	})
	if err != nil {
		return "", fmt.Errorf("chat messages: %w", err)
	}
	return text, nil
}

func beginsWith(text, beginning string) error {
	if strings.HasPrefix(text, beginning) {
		return nil
	}
	n := commonPrefix([]byte(text), []byte(beginning))
	return fmt.Errorf("they differ at byte %d: %q against %q", n, excerpt(text, n), excerpt(beginning, n))
}

// excerpt returns a few characters of text from about byte n on.
func excerpt(text string, n int) string {
	const width = 24
	for n > 0 && n < len(text) && !utf8.RuneStart(text[n]) {
		n--
	}
	end := min(n+width, len(text))
	for end < len(text) && !utf8.RuneStart(text[end]) {
		end++
	}
	return text[n:end]
}
