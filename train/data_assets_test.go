package train

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/stretchr/testify/require"
)

// dataAsset finds one of other people's files, or skips.
func dataAsset(t testing.TB, name string) string {
	t.Helper()
	root := os.Getenv("GOPEFT_ASSETS")
	if root == "" {
		root = "../../shared/assets"
	}
	path := filepath.Join(root, name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no %s: set GOPEFT_ASSETS to the folder that has it", path)
	}
	return path
}

func storiesTokenizer(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Load(dataAsset(t, "stories260K/hf"))
	require.NoError(t, err)
	return tok
}

func TestLoadGSM8K(t *testing.T) {
	path := dataAsset(t, "gsm8k/test.jsonl")
	tok := storiesTokenizer(t)
	d, err := LoadJSONL(path, tok, DataOptions{Fields: []string{"question", "answer"}, Separator: "\n", MaxLength: 1024})
	require.NoError(t, err)
	r := d.Report()
	t.Log(r, d.Buckets())
	// Hugging Face tokenizers, with the common prefix as the border, counts the same.
	require.Equal(t, Report{Examples: 1319, Rows: 1319, Tokens: 472_631, Targets: 284_147}, r)
	eos, ok := tok.EOS()
	require.True(t, ok)
	for i := range d.Len() {
		e := d.Example(i)
		first := slices.IndexFunc(e.Labels, func(label int32) bool { return label != IgnoreIndex })
		require.NotContains(t, e.Labels[first:], int32(IgnoreIndex))
		require.Equal(t, eos, e.IDs[len(e.IDs)-1])
		answer := strings.TrimSpace(tok.Decode(e.Labels[first:len(e.Labels)-1], tokenizer.DecodeOptions{}))
		question := tok.Decode(e.IDs[:first], tokenizer.DecodeOptions{})
		require.Contains(t, answer, "####", "the whole answer")
		require.NotContains(t, question, "####")
	}
	_, err = LoadJSONL(path, tok, DataOptions{})
	require.ErrorContains(t, err, `test.jsonl:1: want the field "text", or "prompt" and "completion", or "messages"; found "answer", "question"`)
}

func TestLoadSelfInstruct(t *testing.T) {
	path := dataAsset(t, "self-instruct-seeds/seed_tasks.jsonl")
	tok := storiesTokenizer(t)
	d, err := LoadJSONL(path, tok, DataOptions{Fields: []string{"instruction"}, MaxLength: 128, Packing: true})
	require.NoError(t, err)
	r := d.Report()
	t.Log(r)
	require.Equal(t, 175, r.Examples)
	require.Less(t, r.Rows, 175)
	require.Equal(t, []int{128}, d.Buckets())
	_, err = LoadJSONL(path, tok, DataOptions{Fields: []string{"instruction", "instances"}})
	require.ErrorContains(t, err, `seed_tasks.jsonl:1: field "instances": want a string, got array`)
}

func TestLoadTinyShakespeare(t *testing.T) {
	path := dataAsset(t, "tinyshakespeare/input.txt")
	tok := storiesTokenizer(t)
	d, err := LoadFile(path, tok, DataOptions{MaxLength: 96})
	require.NoError(t, err)
	t.Log(d.Report(), d.Buckets())
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	var ids []int32
	for i := range d.Len() {
		ids = append(ids, d.Example(i).IDs...)
	}
	text := tok.Decode(ids, tokenizer.DecodeOptions{SkipSpecialTokens: true})
	require.Equal(t, string(content), strings.TrimPrefix(text, " "), "no character is lost")
	require.Equal(t, 96, d.Buckets()[len(d.Buckets())-1])
}

// tokenizerFolder loads a real tokenizer from the folder that a variable names.
func tokenizerFolder(t testing.TB, variable string, parts ...string) *tokenizer.Tokenizer {
	t.Helper()
	dir := os.Getenv(variable)
	if dir == "" {
		t.Skipf("$%s is not set: no tokenizer %s", variable, strings.Join(parts, "/"))
	}
	tok, err := tokenizer.Load(filepath.Join(append([]string{dir}, parts...)...))
	require.NoError(t, err)
	return tok
}

// The ids are those of transformers' apply_chat_template.
func TestChatLabelsSmolLM2(t *testing.T) {
	tok := tokenizerFolder(t, "GOPEFT_SMOLLM2")
	c := chatOf("user:What is 2+2?", "assistant:4", "user:And 3+3?", "assistant:6.")
	e, err := labeler{tok, DataOptions{MaxLength: 512}}.chat(c)
	require.NoError(t, err)
	require.Equal(t, []int32{
		1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2, 198,
		1, 4093, 198, 1780, 314, 216, 34, 27, 34, 47, 2, 198, 1, 520, 9531, 198, 36, 2, 198,
		1, 4093, 198, 3528, 216, 35, 27, 35, 47, 2, 198, 1, 520, 9531, 198, 38, 30, 2, 198,
	}, e.IDs)
	want := slices.Repeat([]int32{IgnoreIndex}, len(e.IDs))
	copy(want[37:], []int32{36, 2})     // 4<|im_end|>
	copy(want[55:], []int32{38, 30, 2}) // 6.<|im_end|>
	require.Equal(t, want, e.Labels)
}

func TestChatLabelsOfFamilies(t *testing.T) {
	for name, want := range map[string][]string{
		"llama3_1": {"4<|eot_id|>", "6.<|eot_id|>"},
		"gemma3":   {"4<end_of_turn>", "6.<end_of_turn>"},
	} {
		t.Run(name, func(t *testing.T) {
			tok := tokenizerFolder(t, "GOPEFT_TOKENIZERS", name)
			o, err := DataOptions{}.withDefaults()
			require.NoError(t, err)
			e, err := labeler{tok, o}.chat(chatOf("user:What is 2+2?", "assistant:4", "user:And 3+3?", "assistant:6."))
			require.NoError(t, err)
			require.Equal(t, want, targetTexts(tok, e))
		})
	}
}

func BenchmarkLoadChats(b *testing.B) {
	tok := tokenizerFolder(b, "GOPEFT_SMOLLM2")
	content := strings.Repeat(`{"messages":[{"role":"user","content":"What is 2+2?"},{"role":"assistant","content":"It is 4."},`+
		`{"role":"user","content":"And 3+3?"},{"role":"assistant","content":"That makes 6."}]}`+"\n", 2000)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		_, err := readJSONL(strings.NewReader(content), "chats.jsonl", tok, DataOptions{})
		require.NoError(b, err)
	}
}

// Qwen 3 writes an empty thought before the last answer and none before earlier
// ones: what a chat looks like depends on where it ends.
func TestChatLabelsQwen3(t *testing.T) {
	tok := tokenizerFolder(t, "GOPEFT_TOKENIZERS", "qwen3")
	o, err := DataOptions{}.withDefaults()
	require.NoError(t, err)
	e, err := labeler{tok, o}.chat(chatOf("user:What is 2+2?", "assistant:4"))
	require.NoError(t, err)
	require.Equal(t, []string{"<think>\n\n</think>\n\n4<|im_end|>"}, targetTexts(tok, e))
	long := chatOf("user:What is 2+2?", "assistant:4", "user:And 3+3?", "assistant:6.")
	_, err = labeler{tok, o}.chat(long)
	require.ErrorContains(t, err, "cannot tell which tokens are the assistant's in message 2")
	o.LastTurnOnly = true
	e, err = labeler{tok, o}.chat(long)
	require.NoError(t, err)
	require.Equal(t, []string{"<think>\n\n</think>\n\n6.<|im_end|>"}, targetTexts(tok, e))
}

// targetTexts decodes each run of targets.
func targetTexts(tok *tokenizer.Tokenizer, e Example) []string {
	var texts []string
	for i := 0; i < len(e.IDs); i++ {
		start := i
		for i < len(e.IDs) && e.Labels[i] != IgnoreIndex {
			i++
		}
		if i > start {
			texts = append(texts, tok.Decode(e.Labels[start:i], tokenizer.DecodeOptions{}))
		}
	}
	return texts
}

func BenchmarkLoadGSM8K(b *testing.B) {
	path := dataAsset(b, "gsm8k/train.jsonl")
	tok := storiesTokenizer(b)
	info, err := os.Stat(path)
	require.NoError(b, err)
	b.SetBytes(info.Size())
	for b.Loop() {
		_, err := LoadJSONL(path, tok, DataOptions{Fields: []string{"question", "answer"}})
		require.NoError(b, err)
	}
}
