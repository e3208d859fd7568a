package models

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

var mixedPrompts = [][]int32{{20, 31, 3}, {12, 7, 28, 16, 43, 57, 26, 17, 57}, {5}, {20, 31, 3}, {44, 45, 46, 47}}

// requireSameGeneration compares ids, and the logarithms of probabilities within 1e-4.
func requireSameGeneration(t *testing.T, want, got Generation, what string) {
	t.Helper()
	require.Equal(t, want.IDs, got.IDs, what)
	require.InDeltaSlice(t, want.LogProbs, got.LogProbs, 1e-4, what)
}

// TestGenerateMixed: every row of a mixed batch, with prompts padded on the left, a cache
// that grows and sampling, gives what its adapter gives for all rows (peft.md 8.55). The
// number of rows is none that programs have on every backend.
func TestGenerateMixed(t *testing.T) {
	for _, family := range []string{"llama"} {
		m := loadFixture(t, family)
		pm := adapted(t, m, 16, 1)
		require.NoError(t, pm.RenameAdapter(peft.DefaultAdapter, "a"))
		add := func(name string, c peft.Config, seed uint64) {
			require.NoError(t, pm.AddAdapter(c, peft.Options{Name: name, Seed: seed}))
		}
		same := lora.LoraConfig{R: 4, LoraAlpha: 16, TargetModules: peft.Modules("q_proj", "v_proj", "down_proj"), InitLoraWeights: lora.InitRandom}
		add("b", same, 2)
		add("other", lora.LoraConfig{R: 2, TargetModules: peft.Modules("embed_tokens", "o_proj"), InitLoraWeights: lora.InitRandom}, 3)
		add("saved", lora.LoraConfig{R: 2, ModulesToSave: peft.Strings{"lm_head"}, InitLoraWeights: lora.InitRandom}, 4)
		for _, o := range []GenerateOptions{
			{MaxNewTokens: 8, LogProbs: true, StopTokens: []int32{}},
			{MaxNewTokens: 80, LogProbs: true, StopTokens: []int32{}, RepetitionPenalty: 1.2},
			{MaxNewTokens: 8, LogProbs: true, StopTokens: []int32{}, Temperature: 1, TopK: 20, TopP: 0.9, Seed: 7},
		} {
			run := func(view site.View) []Generation {
				t.Helper()
				g, err := NewGenerator(view)
				require.NoError(t, err)
				out, err := g.Generate(context.Background(), mixedPrompts, o)
				require.NoError(t, err)
				return out
			}
			want := map[string][]Generation{peft.BaseModel: run(m)}
			for _, name := range pm.Adapters() {
				view, err := selectedView(pm, name)
				require.NoError(t, err)
				want[name] = run(view)
			}
			for _, rows := range [][]string{
				{"a", "b", peft.BaseModel, "b", "a"},
				{"saved", "a", "other", peft.BaseModel, "b"},
			} {
				view, err := pm.Mixed(rows...)
				require.NoError(t, err)
				for i, got := range run(view) {
					requireSameGeneration(t, want[rows[i]][i], got, fmt.Sprint(family, rows, i))
				}
			}
		}
	}
}

func selectedView(pm *peft.PeftModel, names ...string) (site.View, error) { return pm.With(names...) }

// TestGenerateMixedCompilesNothing: another assignment and other adapters of the same
// structure run in the compiled programs; the number of rows must be that of the prompts.
func TestGenerateMixedCompilesNothing(t *testing.T) {
	m := loadFixture(t, "llama")
	pm := adapted(t, m, 16, 1)
	for i, name := range []string{"b", "c"} {
		require.NoError(t, pm.AddAdapter(lora.LoraConfig{
			R: 4, LoraAlpha: 16, TargetModules: peft.Modules("q_proj", "v_proj", "down_proj"), InitLoraWeights: lora.InitRandom,
		}, peft.Options{Name: name, Seed: uint64(i) + 2}))
	}
	run := func(rows ...string) []Generation {
		t.Helper()
		view, err := pm.Mixed(rows...)
		require.NoError(t, err)
		return generated(t, view)
	}
	first := run("default", "b")
	compiled := m.programs.count()
	require.NotEqual(t, first, run("b", "default"))
	run("c", peft.BaseModel)
	run("b", "b")
	run(peft.BaseModel, "default")
	run("c", "b")
	require.Equal(t, compiled, m.programs.count())

	view, err := pm.Mixed("b", "c", "b")
	require.NoError(t, err)
	g, err := NewGenerator(view)
	require.NoError(t, err)
	_, err = g.Generate(context.Background(), viewPrompts, GenerateOptions{})
	require.ErrorContains(t, err, "the view is for 3 rows, got 2 prompts")
}

// TestGenerateSwapCompilesNothing: files of other ranks, scales and fewer targets take an
// adapter's place in programs that are compiled (peft.md 8.57), forward and back.
func TestGenerateSwapCompilesNothing(t *testing.T) {
	m := loadFixture(t, "llama")
	files := map[string]string{}
	want := map[string][]Generation{}
	for i, c := range []lora.LoraConfig{
		{R: 4, LoraAlpha: 16, TargetModules: peft.Modules("q_proj", "v_proj", "embed_tokens")},
		{R: 1, LoraAlpha: 2, TargetModules: peft.Modules("q_proj", "v_proj", "embed_tokens"), LoraDropout: 0.1},
		{R: 8, LoraAlpha: 4, UseRSLoRA: true, TargetModules: peft.Regex(`.*\.q_proj`)},
		{R: 2, RankPattern: peft.Patterns{{Pattern: `layers\.1\..*`, Value: 6}}, AlphaPattern: peft.Patterns{{Pattern: "v_proj", Value: 50}}},
	} {
		c.InitLoraWeights = lora.InitRandom
		pm, err := peft.GetPeftModel(m, c, peft.Options{Seed: uint64(i)})
		require.NoError(t, err)
		name := fmt.Sprint(i)
		files[name] = filepath.Join(t.TempDir(), name)
		require.NoError(t, pm.SavePretrained(files[name]))
		want[name] = generated(t, pm)
	}
	pm, err := peft.LoadAdapter(m, files["0"], peft.Options{MaxRank: 8})
	require.NoError(t, err)
	start := m.programs.count()
	check := func(name string) {
		t.Helper()
		got := generated(t, pm)
		for i := range got {
			requireSameGeneration(t, want[name][i], got[i], name)
		}
	}
	check("0")
	compiled := m.programs.count()
	require.Greater(t, compiled, start)
	for _, name := range []string{"1", "2", "3", "0", "2"} {
		require.NoError(t, pm.SwapAdapter(peft.DefaultAdapter, files[name]))
		check(name)
	}
	// Another adapter made for the same ranks shares the programs too.
	fresh, err := peft.LoadAdapter(m, files["1"], peft.Options{MaxRank: 8})
	require.NoError(t, err)
	got := generated(t, fresh)
	requireSameGeneration(t, want["1"][0], got[0], "fresh")
	require.Equal(t, compiled, m.programs.count())
}

// TestGenerateWhileSwapping: adapters are swapped, renamed, added and deleted while views of
// all kinds generate; each answer is that of one of the adapters as a whole.
func TestGenerateWhileSwapping(t *testing.T) {
	m := loadFixture(t, "llama")
	config := func(r int) lora.LoraConfig {
		return lora.LoraConfig{R: r, TargetModules: peft.Modules("q_proj", "v_proj"), InitLoraWeights: lora.InitRandom}
	}
	var files []string
	want := map[string]bool{}
	for i := range 2 {
		pm, err := peft.GetPeftModel(m, config(i+2), peft.Options{Seed: uint64(i), MaxRank: 4})
		require.NoError(t, err)
		files = append(files, filepath.Join(t.TempDir(), "adapter"))
		require.NoError(t, pm.SavePretrained(files[i]))
		want[fmt.Sprint(generated(t, pm)[0].IDs)] = true
	}
	require.Len(t, want, 2)
	pm, err := peft.LoadAdapter(m, files[0], peft.Options{MaxRank: 4})
	require.NoError(t, err)
	mixed, err := pm.Mixed(peft.DefaultAdapter, peft.BaseModel)
	require.NoError(t, err)
	none, err := pm.With()
	require.NoError(t, err)
	var wait sync.WaitGroup
	for _, view := range []site.View{pm, mixed, pm} {
		wait.Go(func() {
			for range 8 {
				g, err := NewGenerator(view)
				if err == nil {
					var out []Generation
					out, err = g.Generate(context.Background(), viewPrompts, GenerateOptions{MaxNewTokens: 6, StopTokens: []int32{}})
					if err == nil && !want[fmt.Sprint(out[0].IDs)] {
						err = fmt.Errorf("neither adapter's answer: %v", out[0].IDs)
					}
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Go(func() {
		for i := range 20 {
			name := fmt.Sprint("other", i)
			for _, err := range []error{
				pm.SwapAdapter(peft.DefaultAdapter, files[i%2]),
				none.AddAdapter(config(2), peft.Options{Name: name}), none.RenameAdapter(name, name+"b"), none.DeleteAdapter(name + "b"),
			} {
				if err != nil {
					t.Error(err)
				}
			}
			pm.ModelStatus()
			pm.LayerStatus()
		}
	})
	wait.Wait()
}
