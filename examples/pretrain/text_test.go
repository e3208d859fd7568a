package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/models/tokenizer"
)

func TestStories(t *testing.T) {
	require.Equal(t, stories(1, 50), stories(1, 50))
	require.NotEqual(t, stories(1, 50), stories(2, 50))
	different := map[string]bool{}
	for _, s := range stories(1, 1000) {
		require.NotContains(t, s, "{")
		different[s] = true
	}
	require.Len(t, different, 1000)
}

// The words are "low", "Ġlower" and "Ġlowest". "lo" and "ow" occur three times, l
// comes before o; then "lo"+"w"; then "low"+"e" and "Ġ"+"low" twice, l before Ġ.
func TestLearnMerges(t *testing.T) {
	want := []pair{{"l", "o"}, {"lo", "w"}, {"low", "e"}, {"Ġ", "lowe"}}
	require.Equal(t, want, learnMerges([]string{"low lower lowest"}, 4))
	require.Len(t, learnMerges([]string{"ab ab"}, 10), 2, "until nothing is left to join")
}

func TestJoin(t *testing.T) {
	require.Equal(t, []string{"aa", "a", "b"}, join(strings.Split("aaab", ""), pair{"a", "a"}))
	require.Equal(t, []string{"b"}, join([]string{"b"}, pair{"a", "a"}))
}

func TestTokenizerRoundTrip(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, makeTokenizer(dir, stories(1, 200), 400))
	tok, err := tokenizer.Load(dir)
	require.NoError(t, err)
	require.Equal(t, 400, tok.VocabSize())
	all := strings.Builder{}
	for b := range 256 {
		all.WriteRune(rune(b))
	}
	for _, text := range []string{"", stories(2, 1)[0], "Größe\t日本\n\n 12", all.String()} {
		ids := tok.Encode(text, tokenizer.EncodeOptions{AddSpecialTokens: true})
		require.Equal(t, int32(bosID), ids[0])
		require.Equal(t, text, tok.Decode(ids, tokenizer.DecodeOptions{SkipSpecialTokens: true}))
	}
	eos, ok := tok.EOS()
	require.True(t, ok)
	require.Equal(t, int32(eosID), eos)
}
