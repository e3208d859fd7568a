package models

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/site"
)

// passOf builds logits without a cache: the view's arguments, then ids.
func passOf(m *Model, view site.View, arguments int) func(in []*graph.Node) []*graph.Node {
	return func(in []*graph.Node) []*graph.Node {
		p := &site.Pass{Graph: in[0].Graph(), DType: m.DType(), Hook: view.Hook(in[:arguments])}
		hidden := m.Hidden(p, site.Tokens{IDs: in[arguments]})
		return []*graph.Node{graph.ConvertDType(m.Logits(p, hidden), dtypes.Float32)}
	}
}

const talkerConfig = `{"model_type": "llama", "vocab_size": 500, "hidden_size": 32, "intermediate_size": 48,
	"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
	"initializer_range": 0.3, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2}`

// newTalker is a random model with a tokenizer of the same size.
func newTalker(t testing.TB, tok *tokenizer.Tokenizer) *Model {
	t.Helper()
	m, err := New(context.Background(), []byte(talkerConfig), 1, Options{On: backendtest.Open(t)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	m.Tokenizer = tok
	return m
}

func longPrompt(n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(3 + (i*i*7+i*131)%490)
	}
	return ids
}

// TestGenerateLong: prompts that are read in chunks, beside a short one, and a cache
// that grows, give the probabilities of a pass without cache.
func TestGenerateLong(t *testing.T) {
	m := newTalker(t, nil)
	prompts := [][]int32{longPrompt(700), longPrompt(5), longPrompt(1100)}
	o := GenerateOptions{MaxNewTokens: 12, LogProbs: true, StopTokens: []int32{}}
	out, err := newGenerator(t, m).Generate(context.Background(), prompts, o)
	require.NoError(t, err)
	for i, prompt := range prompts {
		row := append(append([]int32{}, prompt...), out[i].IDs...)
		want := logProbsOf(t, m, m, nil, row)[len(prompt)-1:]
		require.Len(t, out[i].LogProbs, 12)
		for j, got := range out[i].LogProbs {
			require.InDelta(t, want[j], got, 1e-3, "prompt %d, token %d", i, j)
		}
	}
	// From a short prompt past the first cache: 64 + 256 tokens become 1024 slots at most.
	o.MaxNewTokens = 600
	out, err = newGenerator(t, m).Generate(context.Background(), prompts[1:2], o)
	require.NoError(t, err)
	require.Len(t, out[0].IDs, 600)
	want := logProbsOf(t, m, m, nil, append(append([]int32{}, prompts[1]...), out[0].IDs...))[4:]
	require.InDeltaSlice(t, want, out[0].LogProbs, 1e-3)
}

// TestGenerateBatch: rows of a batch give what they give alone; sampled rows too,
// given their number.
func TestGenerateBatch(t *testing.T) {
	g := newGenerator(t, newTalker(t, tinyTokenizer(t, "spbpe")))
	prompts := [][]int32{longPrompt(3), longPrompt(20), {1}, longPrompt(9), longPrompt(16)}
	for _, o := range []GenerateOptions{
		{MaxNewTokens: 24},
		{MaxNewTokens: 24, Temperature: 1.1, TopK: 50, TopP: 0.95, RepetitionPenalty: 1.1, Seed: 7},
		{MaxNewTokens: 24, RepetitionPenalty: 1.5, StopStrings: []string{"e", "1"}},
	} {
		out, err := g.Generate(context.Background(), prompts, o)
		require.NoError(t, err)
		for i, prompt := range prompts {
			o.RowOffset = i
			alone, err := g.Generate(context.Background(), [][]int32{prompt}, o)
			require.NoError(t, err)
			require.Equal(t, out[i], alone[0], "row %d", i)
		}
	}
	o := GenerateOptions{MaxNewTokens: 24, Temperature: 1, Seed: 1}
	first, err := g.Generate(context.Background(), prompts[:1], o)
	require.NoError(t, err)
	o.Seed = 2
	second, err := g.Generate(context.Background(), prompts[:1], o)
	require.NoError(t, err)
	require.NotEqual(t, first, second)
}

// TestGenerateStream: the pieces of each row are its text, whatever ends it.
func TestGenerateStream(t *testing.T) {
	for _, name := range []string{"spbpe", "bytelevel"} {
		tok := tinyTokenizer(t, name)
		g := newGenerator(t, newTalker(t, tok))
		reasons := map[FinishReason]int{}
		for seed := range uint64(12) {
			pieces := make([]strings.Builder, 3)
			o := GenerateOptions{
				MaxNewTokens: 20, Temperature: 1.5, Seed: seed, StopStrings: []string{"e", " th", "\n"},
				Stream: func(row int, text string) error {
					require.NotEmpty(t, text)
					pieces[row].WriteString(text)
					return nil
				},
			}
			out, err := g.GenerateText(context.Background(), []string{"", "one two", "ü"}, o)
			require.NoError(t, err)
			for i, row := range out {
				reasons[row.FinishReason]++
				require.Equal(t, row.Text, pieces[i].String())
				for _, stop := range o.StopStrings {
					require.NotContains(t, row.Text, stop)
				}
				last := row.IDs[len(row.IDs)-1]
				require.Equal(t, row.FinishReason == FinishStopToken, last == 2)
				if row.FinishReason == FinishLength {
					require.Len(t, row.IDs, 20)
				}
			}
		}
		require.Positive(t, reasons[FinishStopString], name)
		require.Positive(t, reasons[FinishLength], name)
	}
}

func TestGenerateStopToken(t *testing.T) {
	m := newTalker(t, tinyTokenizer(t, "spbpe"))
	g := newGenerator(t, m)
	run := func(o GenerateOptions) Generation {
		o.MaxNewTokens = 10
		out, err := g.Generate(context.Background(), [][]int32{longPrompt(4)}, o)
		require.NoError(t, err)
		return out[0]
	}
	free := run(GenerateOptions{StopTokens: []int32{}})
	require.Len(t, free.IDs, 10)
	n := 3
	for ; free.IDs[n] == free.IDs[0] || free.IDs[n] == free.IDs[1] || free.IDs[n] == free.IDs[2]; n++ {
	}
	stopped := run(GenerateOptions{StopTokens: []int32{free.IDs[n]}})
	require.Equal(t, free.IDs[:n+1], stopped.IDs)
	require.Equal(t, FinishStopToken, stopped.FinishReason)
	text := m.Tokenizer.Decode(stopped.IDs[:n], tokenizer.DecodeOptions{SkipSpecialTokens: true})
	require.Equal(t, strings.TrimPrefix(text, " "), strings.TrimPrefix(stopped.Text, " "))
	// nil is the model's own end token, which the configuration names.
	m.config.EOSTokenIDs = []int{int(free.IDs[n])}
	require.Equal(t, stopped, run(GenerateOptions{}))
	kept := run(GenerateOptions{KeepSpecialTokens: true})
	require.Equal(t, stopped.IDs, kept.IDs)
	require.True(t, strings.HasPrefix(kept.Text, stopped.Text) && kept.Text != stopped.Text)
}

// TestGeneratePositions: a row ends where the model's positions end.
func TestGeneratePositions(t *testing.T) {
	g := newGenerator(t, loadFixture(t, "llama")) // 128 positions
	prompts := [][]int32{make([]int32, 120), make([]int32, 127), make([]int32, 50)}
	for _, p := range prompts {
		for i := range p {
			p[i] = int32(3 + (i*i+i)%60)
		}
	}
	out, err := g.Generate(context.Background(), prompts, GenerateOptions{MaxNewTokens: 30, StopTokens: []int32{}})
	require.NoError(t, err)
	for i, n := range []int{8, 1, 30} {
		require.Len(t, out[i].IDs, n)
		require.Equal(t, FinishLength, out[i].FinishReason)
	}
	_, err = g.Generate(context.Background(), [][]int32{{5}, make([]int32, 128)}, GenerateOptions{})
	require.ErrorContains(t, err, "models: generate: prompt 1: the prompt has 128 tokens, which leaves no room: the model has 128 positions")
}

func TestGenerateErrors(t *testing.T) {
	m := loadFixture(t, "llama")
	m.config.BOSTokenID = -1
	g := newGenerator(t, m)
	good := [][]int32{{5, 6}}
	for _, c := range []struct {
		prompts [][]int32
		o       GenerateOptions
		want    string
	}{
		{nil, GenerateOptions{}, "no prompt is given"},
		{[][]int32{{5}, {}}, GenerateOptions{}, "prompt 1: the prompt is empty"},
		{[][]int32{{5, 64}}, GenerateOptions{}, "prompt 0: position 1: token id 64 is outside the vocabulary of 64"},
		{[][]int32{{-1}}, GenerateOptions{}, "token id -1 is outside"},
		{good, GenerateOptions{StopTokens: []int32{64}}, "StopTokens: token id 64 is outside"},
		{good, GenerateOptions{MaxNewTokens: -1}, "MaxNewTokens: wanted at least 1"},
		{good, GenerateOptions{Temperature: -1}, "Temperature: wanted 0 (greedy) or more, got -1"},
		{good, GenerateOptions{Temperature: math.NaN()}, "Temperature"},
		{good, GenerateOptions{TopK: 5}, "no effect without a Temperature"},
		{good, GenerateOptions{TopP: 0.5}, "no effect without a Temperature"},
		{good, GenerateOptions{Temperature: 1, TopP: 1.5}, "TopP: wanted more than 0 up to 1"},
		{good, GenerateOptions{Temperature: 1, TopP: math.NaN()}, "TopP"},
		{good, GenerateOptions{Temperature: 1, TopK: -2}, "TopK"},
		{good, GenerateOptions{RepetitionPenalty: -2}, "RepetitionPenalty"},
		{good, GenerateOptions{RowOffset: -2}, "RowOffset"},
		{good, GenerateOptions{StopStrings: []string{"x"}}, "need a tokenizer"},
		{good, GenerateOptions{Tokenizer: tinyTokenizer(t, "spbpe"), StopStrings: []string{""}}, "StopStrings"},
	} {
		_, err := g.Generate(context.Background(), c.prompts, c.o)
		require.ErrorContains(t, err, c.want)
		require.ErrorContains(t, err, "models: generate: ")
	}
	_, err := m.Generate(context.Background(), "text", GenerateOptions{})
	require.ErrorContains(t, err, "need a tokenizer")
	_, err = NewGenerator(nil)
	require.ErrorContains(t, err, "the view is nil")
	require.Zero(t, m.programs.count(), "nothing was compiled")
}

func TestGenerateInterrupted(t *testing.T) {
	m := newTalker(t, tinyTokenizer(t, "spbpe"))
	ctx, cancel := context.WithCancel(context.Background())
	o := GenerateOptions{MaxNewTokens: 1000, StopTokens: []int32{}, Stream: func(int, string) error {
		cancel()
		return nil
	}}
	_, err := m.Generate(ctx, "one", o)
	require.ErrorIs(t, err, context.Canceled)
	full := errors.New("the disk is full")
	o.Stream = func(int, string) error { return full }
	_, err = m.Generate(context.Background(), "one", o)
	require.ErrorIs(t, err, full)
	require.ErrorContains(t, err, "row 0: stream: ")
}

// TestGenerateNotFinite: a broken model is an error, not a text of first ids.
func TestGenerateNotFinite(t *testing.T) {
	m := loadFixture(t, "llama")
	v := m.Store().GetVariable(site.VariablePath("model.norm.weight"))
	broken := make([]float32, v.Shape().Size())
	broken[0] = float32(math.NaN())
	require.NoError(t, v.SetValue(tensors.FromFlatDataAndDimensions(broken, len(broken))))
	for _, o := range []GenerateOptions{{}, {Temperature: 1}} {
		_, err := newGenerator(t, m).Generate(context.Background(), [][]int32{{5}}, o)
		require.ErrorContains(t, err, "row 0, token 1: the model's logits are not finite")
	}
}

// foreign is a language model of another type.
type foreign struct{ *Model }

func (f foreign) LanguageModel() site.LanguageModel { return f }

// TestGenerateForeign: a base that is no Model has its own programs, no tokenizer
// and no end token.
func TestGenerateForeign(t *testing.T) {
	m := newTalker(t, tinyTokenizer(t, "spbpe"))
	g, err := NewGenerator(foreign{m})
	require.NoError(t, err)
	out, err := g.Generate(context.Background(), [][]int32{longPrompt(4)}, GenerateOptions{MaxNewTokens: 5})
	require.NoError(t, err)
	require.Len(t, out[0].IDs, 5)
	require.Empty(t, out[0].Text)
	require.Zero(t, m.programs.count())
	require.NotZero(t, g.programs.count())
	out, err = g.GenerateText(context.Background(), []string{"one"}, GenerateOptions{MaxNewTokens: 5, Tokenizer: m.Tokenizer})
	require.NoError(t, err)
	want, err := m.Generate(context.Background(), "one", GenerateOptions{MaxNewTokens: 5})
	require.NoError(t, err)
	require.Equal(t, want, out[0].Text)
	require.NoError(t, g.Close())
	require.Zero(t, g.programs.count())
}

func TestBuckets(t *testing.T) {
	for n, want := range map[int]int{1: 16, 16: 16, 17: 32, 300: 512, 512: 512, 513: 1024, 1025: 1536} {
		require.Equal(t, want, promptBucket(n), n)
	}
	for n, want := range map[int]int{1: 64, 64: 64, 65: 128, 1024: 1024, 1025: 2048} {
		require.Equal(t, want, slotBucket(n), n)
	}
}

// TestGenerateHalf: in half precision, cache included, the probabilities are those
// of a pass without cache, up to its 8 bits.
func TestGenerateHalf(t *testing.T) {
	m, err := Load(context.Background(), filepath.Join(fixtures, "smollm2"), Options{On: backendtest.Open(t), DType: dtypes.BFloat16})
	require.NoError(t, err)
	defer m.Close()
	prompts := [][]int32{{5, 9, 33, 7, 12}, {41, 8}}
	out, err := newGenerator(t, m).Generate(context.Background(), prompts, GenerateOptions{MaxNewTokens: 10, LogProbs: true, StopTokens: []int32{}})
	require.NoError(t, err)
	for i, prompt := range prompts {
		want := logProbsOf(t, m, m, nil, append(append([]int32{}, prompt...), out[i].IDs...))[len(prompt)-1:]
		require.InDeltaSlice(t, want, out[i].LogProbs, 0.1)
	}
}
