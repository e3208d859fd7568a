package train

import (
	"strings"
	"testing"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/stretchr/testify/require"
)

func TestLabels(t *testing.T) {
	words := []string{"Hello", " world", ": ", " 4", "::", "xyz"}
	for _, c := range []struct {
		name   string
		o      DataOptions
		kind   sampleKind
		sample sample
		want   string
	}{
		{"text", DataOptions{}, textSample, sample{text: "Hello world!"}, "<s>{(Hello)( world)!</s>}"},
		{"text without EOS", DataOptions{NoEOS: true}, textSample, sample{text: "ab"}, "<s>{ab}"},
		{"text that ends itself", DataOptions{}, textSample, sample{text: "ab" + endOfTurn}, "<s>{ab</s>}"},
		{"empty text", DataOptions{}, textSample, sample{}, ""},
		{"completion", DataOptions{}, promptSample, sample{prompt: "Hello", completion: " world"}, "<s>(Hello){( world)</s>}"},
		{"separator", DataOptions{Separator: "\n"}, promptSample, sample{prompt: "Hello", completion: "ok"}, "<s>(Hello)\n{ok</s>}"},
		{"prompts too", DataOptions{TrainOnPrompts: true}, promptSample, sample{prompt: "a", completion: "b"}, "<s>{ab</s>}"},
		{"no prompt", DataOptions{}, promptSample, sample{completion: "b"}, "<s>{b</s>}"},
		{"no completion", DataOptions{}, promptSample, sample{prompt: "a"}, ""},
		{"no EOS", DataOptions{NoEOS: true}, promptSample, sample{prompt: "a", completion: "b"}, "<s>a{b}"},
		// The blank that ends the prompt becomes part of the answer's token.
		{"token over the border", DataOptions{}, promptSample, sample{prompt: "A ", completion: "4"}, "<s>A{( 4)</s>}"},
		// Alone the prompt ends in (: ), together in : and ( 4): the colon is prompt.
		{"prompt tokenised otherwise", DataOptions{}, promptSample, sample{prompt: "A:", completion: ":4"}, "<s>A{(::)4</s>}"},
		{"prompt token split", DataOptions{}, promptSample, sample{prompt: "wxyz", completion: "1"}, "<s>w(xyz){1</s>}"},
		{"truncated", DataOptions{MaxLength: 4}, promptSample, sample{prompt: "ab", completion: "cdef"}, "<s>ab{c}"},
		{"truncated prompt", DataOptions{MaxLength: 4}, promptSample, sample{prompt: "abcd", completion: "e"}, "<s>abc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tok := wordTokenizer{words: words}
			o, err := c.o.withDefaults()
			require.NoError(t, err)
			e, truncated, err := labeler{tok, o}.example(c.kind, c.sample)
			require.NoError(t, err)
			require.Equal(t, c.want, tok.marked(e))
			require.Equal(t, strings.HasPrefix(c.name, "truncated"), truncated)
		})
	}
}

// A token of the prompt that is another one in the whole text must not become a
// target, though it stands after the first difference.
func TestLabelsNoPromptTokenIsATarget(t *testing.T) {
	// alone: a (bc); in the text: a b (cd)
	tok := retokenizing{}
	e := labeler{tok, DataOptions{MaxLength: 10}}.completion("abc", "d")
	require.Equal(t, []int32{'a', 'b', 'c' + 'd'}, e.IDs)
	require.Equal(t, []int32{IgnoreIndex, IgnoreIndex, 'c' + 'd'}, e.Labels)
}

type retokenizing struct{}

func (retokenizing) Encode(text string, _ tokenizer.EncodeOptions) []int32 {
	return map[string][]int32{
		"abcd": {'a', 'b', 'c' + 'd'}, "abc": {'a', 'b' + 'c'}, "ab": {'a', 'b'}, "a": {'a'},
	}[text]
}

func (retokenizing) EOS() (int32, bool) { return 0, false }

func chatOf(turns ...string) chat {
	messages := make([]tokenizer.Message, len(turns))
	for i, turn := range turns {
		role, content, _ := strings.Cut(turn, ":")
		messages[i] = tokenizer.Message{Role: role, Content: content}
	}
	return chat{messages: messages}
}

func TestChatLabels(t *testing.T) {
	for _, c := range []struct {
		name string
		o    DataOptions
		chat chat
		want string
	}{
		{"one answer", DataOptions{}, chatOf("user:hi", "assistant:yo"),
			"[user]\nhi</s>\n[assistant]\n{yo</s>}\n"},
		{"two answers and a system turn", DataOptions{}, chatOf("system:s", "user:a", "assistant:b", "user:c", "assistant:d"),
			"[system]\ns</s>\n[user]\na</s>\n[assistant]\n{b</s>}\n[user]\nc</s>\n[assistant]\n{d</s>}\n"},
		{"ends with the user", DataOptions{}, chatOf("user:a", "assistant:b", "user:c"),
			"[user]\na</s>\n[assistant]\n{b</s>}\n[user]\nc</s>\n"},
		{"all turns", DataOptions{TrainOnPrompts: true}, chatOf("user:a", "assistant:b"),
			"[{user]\na</s>\n[assistant]\nb</s>\n}"},
		{"last answer only", DataOptions{LastTurnOnly: true}, chatOf("user:a", "assistant:b", "user:c", "assistant:d", "user:e"),
			"[user]\na</s>\n[assistant]\nb</s>\n[user]\nc</s>\n[assistant]\n{d</s>}\n[user]\ne</s>\n"},
		{"no last answer", DataOptions{LastTurnOnly: true}, chatOf("user:a"), "[user]\na</s>\n"},
		{"no answer", DataOptions{}, chatOf("user:a"), "[user]\na</s>\n"},
		{"begins with an answer", DataOptions{}, chatOf("assistant:b", "user:a"), "[{assistant]\nb</s>}\n[user]\na</s>\n"},
		{"cut off in the second", DataOptions{MaxLength: 26}, chatOf("user:a", "assistant:b", "user:c", "assistant:d"),
			"[user]\na</s>\n[assistant]\n{b</s>}\n["},
		{"empty", DataOptions{}, chat{}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := c.o.withDefaults()
			require.NoError(t, err)
			e, _, err := labeler{wordTokenizer{}, o}.example(chatSample, sample{chat: c.chat})
			require.NoError(t, err)
			require.Equal(t, c.want, wordTokenizer{}.marked(e))
		})
	}
}

func TestChatErrors(t *testing.T) {
	// forgetful leaves out all answers but the last, as templates of thinking models do with thoughts.
	forgetful := func(messages []tokenizer.Message, prompt bool) (string, error) {
		kept := []tokenizer.Message{}
		for i, m := range messages {
			if m.Role == assistant && i < len(messages)-1 {
				m.Content = ""
			}
			kept = append(kept, m)
		}
		return chatML(kept, prompt)
	}
	chat := chatOf("user:a", "assistant:b", "user:c", "assistant:d")
	_, err := labeler{wordTokenizer{render: forgetful}, DataOptions{MaxLength: 100}}.chat(chat)
	require.ErrorContains(t, err, "cannot tell which tokens are the assistant's in message 2")
	require.ErrorContains(t, err, `differ at byte 28: "<|end|>\n[user]\nc<|end|>\n" against "b<|end|>\n"`)
	_, err = labeler{wordTokenizer{render: forgetful}, DataOptions{MaxLength: 100, TrainOnPrompts: true}}.chat(chat)
	require.NoError(t, err)

	_, err = labeler{wordTokenizer{}, DataOptions{MaxLength: 100}}.chat(chatOf("nobody:x"))
	require.ErrorContains(t, err, "chat messages: unknown role nobody")
	_, err = labeler{retokenizing{}, DataOptions{MaxLength: 100}}.chat(chat)
	require.ErrorContains(t, err, "train.retokenizing renders no chats")
}

func TestExcerpt(t *testing.T) {
	text := strings.Repeat("é", 20)
	require.Equal(t, strings.Repeat("é", 12), excerpt(text, 3), "from the start of the character, and to the end of one")
	require.Equal(t, "", excerpt("abc", 3))
}
