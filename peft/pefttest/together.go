package pefttest

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/train"
)

// Together checks adapters of several methods that are active at once on a small Llama:
// trained jointly, and each on top of the frozen others.
type Together struct {
	Configs []peft.Config
	// OrderMatters is set where the order of activation counts, as with two adapters of one
	// sublayer.
	OrderMatters bool
}

// Run runs the checks, each as a subtest.
func (c Together) Run(t *testing.T) {
	t.Helper()
	backendtest.Sample(t, 4)
	onGo := backend.IsGo(backendtest.Open(t))
	t.Run("each counts", c.eachCounts)
	t.Run("trained jointly", c.jointly)
	if !testing.Short() && onGo {
		t.Run("trained on top of frozen ones", c.onTop)
		t.Run("saved together", c.saved)
		t.Run("generation", c.generation)
	}
}

// attach makes a model with all adapters, away from their initial values.
func (c Together) attach(t *testing.T) *peft.PeftModel {
	t.Helper()
	base := Suite{Family: "llama"}.base(t)
	var pm *peft.PeftModel
	for i, name := range c.names() {
		s := Suite{Config: c.Configs[i], Noise: 0.1}
		var err error
		if o := (peft.Options{Name: name, Seed: uint64(i)}); pm == nil {
			pm, err = peft.GetPeftModel(base, s.Config, o)
		} else {
			err = pm.AddAdapter(s.Config, o)
		}
		require.NoError(t, err)
		s.move(t, pm, name, uint64(i))
	}
	return with(t, pm, c.names()...)
}

// names are those of the adapters, by their methods.
func (c Together) names() []string {
	var out []string
	for i, config := range c.Configs {
		out = append(out, strings.ToLower(config.PeftType())+string(rune('a'+i)))
	}
	return out
}

func (c Together) eachCounts(t *testing.T) {
	pm := c.attach(t)
	all := logits(t, pm)
	for i, name := range c.names() {
		others := slices.Delete(slices.Clone(c.names()), i, i+1)
		require.Greater(t, distance(all, logits(t, with(t, pm, others...))), 1e-4, "without %s", name)
	}
	if backwards := slices.Clone(c.names()); !c.OrderMatters {
		slices.Reverse(backwards)
		basetest.RequireClose(t, all, logits(t, with(t, pm, backwards...)), 1e-5, "in the other order")
	}
}

func (c Together) jointly(t *testing.T) {
	pm := c.attach(t)
	prints := fingerprint(t, pm.Base())
	before := c.tensors(t, pm)
	data := dataset(t, pm.Base(), 4)
	start := loss(t, pm, data)
	fit(t, pm, data, arguments(t, 8))
	require.Less(t, loss(t, pm, data), start, "the loss after eight steps")
	after := c.tensors(t, pm)
	for _, name := range c.names() {
		require.NotEqual(t, before[name], after[name], "%s did not move", name)
	}
	require.Equal(t, prints, fingerprint(t, pm.Base()), "the base")
}

func (c Together) onTop(t *testing.T) {
	data := dataset(t, Suite{Family: "llama"}.base(t), 4)
	for _, name := range c.names() {
		pm, err := c.attach(t).Training(name)
		require.NoError(t, err)
		before := c.tensors(t, pm)
		args := arguments(t, 4)
		args.GradientCheckpointing = true
		args.SaveStrategy, args.SaveSteps = train.SaveSteps, 2
		fit(t, pm, data, args)
		after := c.tensors(t, pm)
		for _, other := range c.names() {
			if other == name {
				require.NotEqual(t, before[other], after[other], "%s did not move", other)
			} else {
				require.Equal(t, before[other], after[other], "%s is frozen", other)
			}
		}
		again, err := c.attach(t).Training(name)
		require.NoError(t, err)
		resumed := arguments(t, 4)
		resumed.GradientCheckpointing = true
		resumed.ResumeFromCheckpoint = filepath.Join(args.OutputDir, "checkpoint-2")
		fit(t, again, data, resumed)
		require.Equal(t, after, c.tensors(t, again), "resumed")
	}
}

func (c Together) saved(t *testing.T) {
	pm := c.attach(t)
	pm, err := pm.Training(c.names()[0])
	require.NoError(t, err)
	dir := filepath.Join(t.TempDir(), "all")
	require.NoError(t, pm.SavePretrained(dir))
	got, err := peft.LoadAdapters(pm.Base(), dir)
	require.NoError(t, err)
	require.Equal(t, pm.Active(), got.Active())
	require.Equal(t, pm.Trained(), got.Trained())
	basetest.RequireClose(t, logits(t, pm), logits(t, got), 1e-6, "logits")
}

// generation through the cache gives the tokens that the logits of the whole text give.
func (c Together) generation(t *testing.T) {
	pm := c.attach(t)
	const n = 6
	prompts := [][]int32{{20, 31, 3, 9}, {5, 11}}
	for _, view := range []*peft.PeftModel{pm, with(t, pm, c.names()[0])} {
		g, err := models.NewGenerator(view)
		require.NoError(t, err)
		out, err := g.Generate(t.Context(), prompts, models.GenerateOptions{MaxNewTokens: n, StopTokens: []int32{}})
		require.NoError(t, err)
		require.NoError(t, g.Close())
		for i, prompt := range prompts {
			text := slices.Clone(prompt)
			for range n {
				text = append(text, nextToken(t, view, text))
			}
			require.Equal(t, text[len(prompt):], out[i].IDs)
		}
	}
}

func (c Together) tensors(t *testing.T, pm *peft.PeftModel) map[string]map[string][]float32 {
	t.Helper()
	all := map[string]map[string][]float32{}
	for _, name := range c.names() {
		all[name] = tensorsOf(t, pm, name)
	}
	return all
}

// nextToken is the likeliest token after a text, of which nothing is cached.
func nextToken(t *testing.T, view *peft.PeftModel, text []int32) int32 {
	t.Helper()
	ids := tensors.FromFlatDataAndDimensions(text, 1, len(text))
	all := basetest.Evaluate(t, view, ids, ids).Logits
	last := all[len(all)-len(all)/len(text):]
	best := 0
	for i, x := range last {
		if x > last[best] {
			best = i
		}
	}
	return int32(best)
}
