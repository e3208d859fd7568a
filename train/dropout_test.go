package train

import (
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/site"
)

// dropped runs Dropout on ones as a step's program would.
func dropped(t *testing.T, key string, random []uint32, rows, columns int, rate float64) []float32 {
	t.Helper()
	exec := graph.MustNewExec(testBackend(t), func(random *graph.Node, x *graph.Node) *graph.Node {
		at := func(i int) *graph.Node { return graph.Reshape(graph.Slice(random, graph.AxisElem(i))) }
		p := &site.Pass{Graph: x.Graph(), Random: &site.Random{Seed: at(0), Step: at(1), MicroStep: at(2), RowOffset: at(3)}}
		return p.Dropout(key, x, rate)
	})
	ones := make([]float32, rows*columns)
	for i := range ones {
		ones[i] = 1
	}
	out, err := exec.Call(random, tensors.FromFlatDataAndDimensions(ones, rows, columns/8, 8))
	require.NoError(t, err)
	return hostValues(t, out)[0]
}

func TestDropoutMask(t *testing.T) {
	const rows, columns, rate = 16, 4096, 0.3
	mask := dropped(t, "a", []uint32{1, 2, 3, 0}, rows, columns, rate)
	kept, sum := 0, 0.0
	for _, v := range mask {
		if v != 0 {
			require.InDelta(t, 1/(1-rate), v, 1e-6)
			kept++
			sum += float64(v)
		}
	}
	n := float64(rows * columns)
	// Five standard deviations of a binomial mean over 65536 draws: 5·sqrt(0.21/65536) = 0.009.
	require.InDelta(t, 1-rate, float64(kept)/n, 0.009)
	require.InDelta(t, 1, sum/n, 0.013)

	// Every row and column by itself has the rate too.
	for r := range rows {
		kept := 0
		for _, v := range mask[r*columns : (r+1)*columns] {
			if v != 0 {
				kept++
			}
		}
		require.InDelta(t, 1-rate, float64(kept)/columns, 0.036, "row %d", r)
	}

	for name, other := range map[string][]float32{
		"seed":  dropped(t, "a", []uint32{9, 2, 3, 0}, rows, columns, rate),
		"step":  dropped(t, "a", []uint32{1, 3, 3, 0}, rows, columns, rate),
		"micro": dropped(t, "a", []uint32{1, 2, 4, 0}, rows, columns, rate),
		"row":   dropped(t, "a", []uint32{1, 2, 3, 1}, rows, columns, rate),
		"place": dropped(t, "b", []uint32{1, 2, 3, 0}, rows, columns, rate),
	} {
		equal := 0
		for i := range mask {
			if mask[i] == other[i] {
				equal++
			}
		}
		// Independent masks agree with probability 0.7² + 0.3² = 0.58.
		require.InDelta(t, 0.58, float64(equal)/n, 0.01, name)
	}
	require.Equal(t, mask[4*columns:], dropped(t, "a", []uint32{1, 2, 3, 4}, rows-4, columns, rate), "rows split off a batch keep their masks")
}

// Steps on a batch in pieces see the masks of the whole batch.
func TestDropoutOfSplitBatches(t *testing.T) {
	pm := newToyPeft(t, false, toyConfig{Targets: mixTargets, Dropout: 0.4})
	whole, one := newTestStepper(t, pm, stepConfig{seed: 5})
	parts, other := newTestStepper(t, pm, stepConfig{seed: 5, parts: 3})
	without, third := newTestStepper(t, newToyPeft(t, false, toyConfig{Targets: mixTargets}), stepConfig{seed: 5})
	for i := range 3 {
		b := toyBatch(6, 9, uint64(i))
		want, err := whole.step(t.Context(), one, []Batch{b}, 1e-2)
		require.NoError(t, err)
		got, err := parts.step(t.Context(), other, []Batch{b}, 1e-2)
		require.NoError(t, err)
		require.InEpsilon(t, want.loss, got.loss, 1e-5)
		plain, err := without.step(t.Context(), third, []Batch{b}, 1e-2)
		require.NoError(t, err)
		require.Greater(t, absolute(plain.loss-want.loss)/want.loss, 1e-4, "dropout does something")
	}
	requireClose(t, hostValues(t, one.values)[0], hostValues(t, other.values)[0], 1e-5)
}

// One batch of 8 rows and two of 4 are the same step, dropout included: also when the
// trainer makes the batches.
func TestDropoutOfMicroBatches(t *testing.T) {
	for _, parts := range []int{1, defaultParts} {
		pm := newToyPeft(t, false, toyConfig{Targets: mixTargets, Dropout: 0.4})
		whole, one := newTestStepper(t, pm, stepConfig{seed: 5, maxGradNorm: 1})
		micro, two := newTestStepper(t, pm, stepConfig{seed: 5, maxGradNorm: 1, parts: parts})
		for i := range 4 {
			b := toyBatch(8, 9, uint64(i))
			want, err := whole.step(t.Context(), one, []Batch{b}, 1e-2)
			require.NoError(t, err)
			got, err := micro.step(t.Context(), two, b.split(2, 1), 1e-2)
			require.NoError(t, err)
			require.InEpsilon(t, want.loss, got.loss, 1e-5)
		}
		requireClose(t, hostValues(t, one.values)[0], hostValues(t, two.values)[0], 1e-5)
	}
	var losses [2]float64
	for i, size := range []int{4, 8} {
		args := toyArguments(t)
		args.NoShuffle, args.PerDeviceTrainBatchSize, args.GradientAccumulationSteps = true, size, 8/size
		result, err := newToyTrainer(t, toyModel(t), args).Train(t.Context())
		require.NoError(t, err)
		losses[i] = result.TrainingLoss
	}
	require.InEpsilon(t, losses[0], losses[1], 1e-5)
}

func TestDropoutSeedAndStep(t *testing.T) {
	pm := newToyPeft(t, false, toyConfig{Targets: mixTargets, Dropout: 0.4})
	b := toyBatch(6, 9, 1)
	s, _ := newTestStepper(t, pm, stepConfig{})
	loss := func(seed uint64, step int) float64 {
		st, err := newState(pm)
		require.NoError(t, err)
		s.config.seed, st.step = seed, step // neither is compiled in
		result, err := s.step(t.Context(), st, []Batch{b}, 0)
		require.NoError(t, err)
		return result.loss
	}
	require.Equal(t, loss(1, 0), loss(1, 0))
	require.NotEqual(t, loss(1, 0), loss(1, 1))
	require.NotEqual(t, loss(1, 0), loss(2, 0))
	require.NotEqual(t, loss(1, 0), loss(1<<32+1, 0), "the seed's upper half counts")
}

func absolute(x float64) float64 { return max(x, -x) }
