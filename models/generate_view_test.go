package models

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

var viewPrompts = [][]int32{{20, 31, 3}, {12, 7, 28, 16, 43, 57, 26, 17, 57}}

// adapted is a model with an adapter that changes it.
func adapted(t testing.TB, m *Model, alpha float64, seed uint64) *peft.PeftModel {
	t.Helper()
	pm, err := peft.GetPeftModel(m, lora.LoraConfig{
		R: 4, LoraAlpha: alpha, TargetModules: peft.Modules("q_proj", "v_proj", "down_proj"), InitLoraWeights: lora.InitRandom,
	}, peft.Options{Seed: seed})
	require.NoError(t, err)
	return pm
}

// generated returns ids and logarithms of probabilities: the latter see every
// change of the model.
func generated(t testing.TB, view site.View) []Generation {
	t.Helper()
	g, err := NewGenerator(view)
	require.NoError(t, err)
	defer func() { require.NoError(t, g.Close()) }()
	out, err := g.Generate(context.Background(), viewPrompts, GenerateOptions{MaxNewTokens: 6, LogProbs: true, StopTokens: []int32{}})
	require.NoError(t, err)
	return out
}

// TestGenerateAdapters: a view generates what the merged model would; the base is
// as before; new values compile nothing.
func TestGenerateAdapters(t *testing.T) {
	m := loadFixture(t, "llama")
	base := generated(t, m)
	compiled := m.programs.count()
	pm := adapted(t, m, 16, 1)
	with := generated(t, pm)
	require.NotEqual(t, base, with)
	require.Greater(t, m.programs.count(), compiled)

	// The view's logits are those of a pass with its hook.
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	row := append(append([]int32{}, viewPrompts[1]...), with[1].IDs...)
	want := logProbsOf(t, m, pm, arguments, row)
	for i, got := range with[1].LogProbs {
		require.InDelta(t, want[len(viewPrompts[1])-1+i], got, 1e-4)
	}

	alone, err := pm.With()
	require.NoError(t, err)
	compiled = m.programs.count()
	require.Equal(t, base, generated(t, alone))

	// Values of another adapter, then the old ones again.
	other := adapted(t, m, 16, 2)
	values, err := other.Values(peft.DefaultAdapter)
	require.NoError(t, err)
	old, err := pm.Values(peft.DefaultAdapter)
	require.NoError(t, err)
	require.NoError(t, pm.SetValues(peft.DefaultAdapter, values))
	swapped := generated(t, pm)
	require.NotEqual(t, with, swapped)
	require.NoError(t, pm.SetValues(peft.DefaultAdapter, old))
	require.Equal(t, with, generated(t, pm))
	require.Equal(t, compiled, m.programs.count(), "a swap of values compiles nothing")
}

// TestGenerateOtherConfig: adapters of the same name and the same shapes on one
// base that differ in their scaling must not share programs.
func TestGenerateOtherConfig(t *testing.T) {
	m := loadFixture(t, "llama")
	with := generated(t, adapted(t, m, 16, 1))
	compiled := m.programs.count()
	require.NotEqual(t, with, generated(t, adapted(t, m, 1, 1)))
	require.Greater(t, m.programs.count(), compiled)
	// An adapter of the same configuration, as a server loads many, compiles nothing.
	compiled = m.programs.count()
	require.NotEqual(t, with, generated(t, adapted(t, m, 16, 3)))
	require.Equal(t, compiled, m.programs.count())
}

// logProbsOf returns the logarithm of the probability of each next id of a row,
// computed without a cache.
func logProbsOf(t testing.TB, m *Model, view site.View, arguments []*tensors.Tensor, row []int32) []float32 {
	t.Helper()
	e := exec(t, m, passOf(m, view, len(arguments)))
	in := []any{}
	for _, a := range arguments {
		in = append(in, a)
	}
	out, err := e.Exec(append(in, [][]int32{row})...)
	require.NoError(t, err)
	logits := out[0].Value().([][][]float32)[0]
	probs := make([]float32, len(row)-1)
	for i := range probs {
		probs[i] = logProb(logits[i], row[i+1])
	}
	return probs
}

// TestGenerateConcurrent: many goroutines, views, batches and samplers at once
// give what each gives alone.
func TestGenerateConcurrent(t *testing.T) {
	m := loadFixture(t, "qwen3")
	pm := adapted(t, m, 16, 1)
	views := []site.View{m, pm}
	options := []GenerateOptions{
		{MaxNewTokens: 8, StopTokens: []int32{}},
		{MaxNewTokens: 8, StopTokens: []int32{}, Temperature: 1, TopK: 20, TopP: 0.9, Seed: 5},
		{MaxNewTokens: 70, StopTokens: []int32{}, RepetitionPenalty: 1.2}, // the cache grows
	}
	want := map[string][]Generation{}
	run := func(fresh bool, view, option, rows int) ([]Generation, error) {
		v := views[view]
		if fresh { // nobody used these values before
			v = adapted(t, m, 16, 1)
		}
		g, err := NewGenerator(v)
		if err != nil {
			return nil, err
		}
		return g.Generate(context.Background(), viewPrompts[:rows], options[option])
	}
	var wait sync.WaitGroup
	var mu sync.Mutex
	for round := range 2 {
		for view := range views {
			for option := range options {
				for rows := 1; rows <= 2; rows++ {
					key := fmt.Sprint(view, option, rows)
					wait.Go(func() {
						out, err := run(false, view, option, rows)
						mu.Lock()
						defer mu.Unlock()
						if err != nil {
							t.Error(err)
						}
						if round == 0 {
							want[key] = out
						} else {
							require.Equal(t, want[key], out)
						}
					})
				}
			}
		}
		wait.Wait()
	}
	for option := range options {
		out, err := run(true, 1, option, 2)
		require.NoError(t, err)
		require.Equal(t, want[fmt.Sprint(1, option, 2)], out)
	}
}
