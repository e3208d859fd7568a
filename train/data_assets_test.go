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
