package train

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// chatTokenizer is a [Tokenizer] that can render chats.
type chatTokenizer interface {
	ApplyChatTemplate(messages []chatMessage, options chatOptions) (string, error)
}

const assistant = "assistant"

// chat makes targets of the assistant's turns. Where they lie is found by
// rendering the chat up to each of them, with the header that asks for an answer,
// and up to its end. That is right only if each rendering is how the next begins,
// which is checked. What a template writes after the end-of-sequence token of a
// turn (often a line break) is never generated and so no target.
func (l labeler) chat(messages []message) (Example, error) {
	if len(messages) == 0 {
		return Example{}, nil
	}
	whole, err := l.render(messages, false)
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
	for i, m := range messages {
		if m.role != assistant {
			continue
		}
		header, turn, err := l.turn(messages, i, whole)
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

// turn returns the beginnings of the whole rendering up to the header of message
// i, after which its text begins, and up to its end.
func (l labeler) turn(messages []message, i int, whole string) (header, turn string, err error) {
	if i > 0 {
		if header, err = l.render(messages[:i], true); err != nil {
			return "", "", err
		}
	}
	if turn, err = l.render(messages[:i+1], false); err != nil {
		return "", "", err
	}
	if err = beginsWith(turn, header); err == nil {
		err = beginsWith(whole, turn)
	}
	if err != nil {
		return "", "", fmt.Errorf("chat template: cannot tell which tokens are the assistant's in message %d: "+
			"the chat up to it is rendered otherwise than as the beginning of the whole (%w); "+
			"give each such turn a line of its own, or set TrainOnPrompts", i+1, err)
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

func (l labeler) render(messages []message, generationPrompt bool) (string, error) {
	tok, ok := l.tok.(chatTokenizer)
	if !ok {
		return "", fmt.Errorf("chat messages: a tokenizer of type %T renders no chats", l.tok)
	}
	converted := make([]chatMessage, len(messages))
	for i, m := range messages {
		converted[i] = chatMessage{Role: m.role, Content: m.content}
	}
	text, err := tok.ApplyChatTemplate(converted, chatOptions{AddGenerationPrompt: generationPrompt})
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
