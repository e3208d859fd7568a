package train

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/peft"
)

var mixTargets = []string{"layers.0.mix", "layers.1.mix"}

func newTestStepper(t testing.TB, pm *peft.PeftModel, config stepConfig) (*stepper, *state) {
	t.Helper()
	s, err := newStepper(pm, config)
	require.NoError(t, err)
	t.Cleanup(s.close)
	st, err := newState(pm)
	require.NoError(t, err)
	return s, st
}

// gradients runs the gradients program alone: the sum of gradients, loss and count.
func (s *stepper) testGradients(t testing.TB, st *state, b Batch) (gradients []float32, loss, count float64) {
	t.Helper()
	var sums []*tensors.Tensor
	for _, v := range st.values {
		sums = append(sums, tensors.FromShape(v.Shape()))
	}
	sums = append(sums, tensors.FromFlatDataAndDimensions([]float32{0, 0}, 2))
	out, err := s.gradients(st, sums, b)
	require.NoError(t, err)
	host := hostValues(t, out)
	last := host[len(host)-1]
	return host[0], float64(last[0]), float64(last[1])
}

// plainLoss is cross entropy written down without any of CausalLM's devices.
type plainLoss struct{}

func (plainLoss) Loss(r *Run, b BatchNodes) (sum, count *graph.Node) {
	logits := r.Model.Logits(r.Pass, r.Model.Hidden(r.Pass, b.Tokens))
	logProbabilities := graph.LogSoftmax(logits, -1)
	valid := graph.GreaterOrEqual(b.Targets, graph.ZerosLike(b.Targets))
	oneHot := graph.OneHot(graph.Where(valid, b.Targets, graph.ZerosLike(b.Targets)), r.Model.VocabSize(), logits.DType())
	losses := graph.Neg(graph.ReduceSum(graph.Mul(oneHot, logProbabilities), -1))
	mask := graph.ConvertDType(valid, logits.DType())
	return graph.ReduceAllSum(graph.Mul(losses, mask)), graph.ReduceAllSum(mask)
}

func TestLossMatchesPlainAutodiff(t *testing.T) {
	batch := toyBatch(5, 8, 1)
	cases := []struct {
		name   string
		tied   bool
		config toyConfig
	}{
		{"frozen head", false, toyConfig{Targets: mixTargets}},
		{"frozen tied head", true, toyConfig{Targets: mixTargets}},
		{"adapted head", false, toyConfig{Targets: []string{"layers.0.mix", "lm_head"}}},
		{"trained head", false, toyConfig{Targets: mixTargets, Full: "lm_head.weight"}},
		{"trained tied head", true, toyConfig{Targets: mixTargets, Full: "embed_tokens.weight"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			pm := newToyPeft(t, c.tied, c.config)
			plain, st := newTestStepper(t, pm, stepConfig{loss: plainLoss{}})
			want, wantLoss, wantCount := plain.testGradients(t, st, batch)
			require.Greater(t, maxDifference(want, make([]float32, len(want))), 0.01)
			require.Equal(t, float64(batch.Targets()), wantCount)
			chunks := []int{0, 1, 3, 7, 40}
			if !backend.IsGo(testBackend(t)) {
				chunks = []int{7} // compiling takes XLA seconds
			}
			for _, chunk := range chunks {
				for _, checkpoint := range []bool{false, true} {
					s, _ := newTestStepper(t, pm, stepConfig{loss: CausalLM{ChunkTokens: chunk}, checkpoint: checkpoint})
					got, loss, count := s.testGradients(t, st, batch)
					requireClose(t, want, got, 2e-6, "chunk ", chunk)
					require.InEpsilon(t, wantLoss, loss, 1e-6)
					require.Equal(t, wantCount, count)
					eval, err := s.evaluate(st.values, batch)
					require.NoError(t, err)
					require.InEpsilon(t, wantLoss, eval.sum, 1e-6)
					require.Equal(t, batch.Targets(), eval.targets)
				}
			}
		})
	}
}

// The shortcut must really be taken, or the test above compares one path with itself.
func TestFrozenHeadIsUsed(t *testing.T) {
	for _, c := range []struct {
		name   string
		tied   bool
		config toyConfig
		frozen bool
	}{
		{"frozen", false, toyConfig{Targets: mixTargets}, true},
		{"tied frozen", true, toyConfig{Targets: mixTargets}, true},
		{"adapted", false, toyConfig{Targets: []string{"lm_head"}}, false},
		{"replaced", false, toyConfig{Full: "lm_head.weight"}, false},
		{"tied to an adapted embedding", true, toyConfig{Full: "embed_tokens.weight"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			pm := newToyPeft(t, c.tied, c.config)
			arguments, err := pm.Arguments()
			require.NoError(t, err)
			var frozen bool
			exec := graph.MustNewExec(pm.Base().Backend(), func(values []*graph.Node) *graph.Node {
				binding, err := pm.Bind(values)
				require.NoError(t, err)
				head := pm.LanguageModel().Head()
				frozen = headIsFrozen(binding, head)
				return graph.Zeros(values[0].Graph(), values[0].Shape())
			})
			_, err = exec.Call(tensorArguments(arguments)...)
			require.NoError(t, err)
			require.Equal(t, c.frozen, frozen)
		})
	}
}

func TestAccumulationEqualsOneBatch(t *testing.T) {
	for _, parts := range []int{1, 4} {
		pm := newToyPeft(t, false, toyConfig{Targets: mixTargets})
		whole, one := newTestStepper(t, pm, stepConfig{maxGradNorm: 1})
		split, four := newTestStepper(t, pm, stepConfig{maxGradNorm: 1, parts: parts})
		for i := range 5 {
			batch := toyBatch(4, 9, uint64(i))
			want, err := whole.step(t.Context(), one, []Batch{batch}, 1e-2)
			require.NoError(t, err)
			got, err := split.step(t.Context(), four, batch.split(4, 1), 1e-2)
			require.NoError(t, err)
			require.Equal(t, want.targets, got.targets)
			require.InEpsilon(t, want.loss, got.loss, 1e-5)
			require.InEpsilon(t, want.gradNorm, got.gradNorm, 1e-5)
		}
		requireClose(t, hostValues(t, one.values)[0], hostValues(t, four.values)[0], 1e-5)
		requireClose(t, hostValues(t, one.m)[0], hostValues(t, four.m)[0], 1e-6)
	}
}

// AdamW and clipping against a few lines of float64.
func TestStepMatchesReference(t *testing.T) {
	const lr, clip = 0.02, 0.1
	adamw := AdamW{Beta1: 0.8, Beta2: 0.95, Epsilon: 1e-6, WeightDecay: 0.1}
	pm := newToyPeft(t, false, toyConfig{Targets: mixTargets})
	s, st := newTestStepper(t, pm, stepConfig{adamw: adamw, maxGradNorm: clip})
	n := len(hostValues(t, st.values)[0])
	m, v := make([]float64, n), make([]float64, n)
	for step := 1; step <= 4; step++ {
		batch := toyBatch(3, 8, uint64(step))
		before := hostValues(t, st.values)[0]
		sums, loss, count := s.testGradients(t, st, batch)
		norm := 0.0
		for _, g := range sums {
			norm += math.Pow(float64(g)/count, 2)
		}
		norm = math.Sqrt(norm)
		require.Greater(t, norm, clip)
		result, err := s.step(t.Context(), st, []Batch{batch}, lr)
		require.NoError(t, err)
		require.InEpsilon(t, loss/count, result.loss, 1e-5)
		require.InEpsilon(t, norm, result.gradNorm, 1e-5)
		after := hostValues(t, st.values)[0]
		for i := range n {
			g := float64(sums[i]) / count * clip / (norm + 1e-6)
			m[i] = 0.8*m[i] + 0.2*g
			v[i] = 0.95*v[i] + 0.05*g*g
			hat := math.Sqrt(v[i]/(1-math.Pow(0.95, float64(step)))) + 1e-6
			want := float64(before[i])*(1-lr*0.1) - lr*m[i]/(1-math.Pow(0.8, float64(step)))/hat
			require.InDelta(t, want, after[i], 1e-5, "step %d, element %d", step, i)
		}
	}
}

// Tensors of NoDecay follow AdamW without decay, beside others in the flat vector and as
// large tensors of their own: what decay adds to one step is -lr·decay·value.
func TestNoDecay(t *testing.T) {
	const lr, decay = 0.02, 0.1
	for _, c := range []struct {
		name string
		toyConfig
	}{
		{"flat", toyConfig{Targets: mixTargets, NoDecay: []string{"layers.0.mix.lora_B.weight", "layers.1.mix.lora_A.weight"}}},
		{"large", toyConfig{Targets: mixTargets[:1], Big: true, NoDecay: []string{"layers.0.mix.big"}}},
		{"beside large", toyConfig{Targets: mixTargets[:1], Big: true, NoDecay: []string{"layers.0.mix.lora_A.weight"}}},
		{"all", toyConfig{Targets: mixTargets[:1], NoDecay: []string{"layers.0.mix.lora_A.weight", "layers.0.mix.lora_B.weight"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pm := newToyPeft(t, false, c.toyConfig)
			layout, err := pm.Layout(peft.DefaultAdapter)
			require.NoError(t, err)
			values := valuesOf(t, pm)
			for i := range values["layers.0.mix.big"] { // zeros would not decay
				values["layers.0.mix.big"][i] = 0.5 - float32(i%2)
			}
			setValues(t, pm, values)
			train := func(weightDecay float64, steps int) map[string][]float32 {
				s, st := newTestStepper(t, pm, stepConfig{maxGradNorm: 1, adamw: AdamW{WeightDecay: weightDecay}})
				for range steps {
					_, err := s.step(t.Context(), st, []Batch{toyBatch(4, 8, 1)}, lr)
					require.NoError(t, err)
				}
				host, err := layout.Host(st.values)
				require.NoError(t, err)
				return host
			}
			start, plain, got := train(0, 0), train(0, 1), train(decay, 1)
			for _, p := range layout.Params() {
				for i := 0; i < p.Size(); i += 1 + p.Size()/100 {
					want := float64(plain[p.Name][i])
					if !slices.Contains(c.NoDecay, p.Name) {
						want -= lr * decay * float64(start[p.Name][i])
					}
					require.InDelta(t, want, got[p.Name][i], 1e-6, "%s, element %d", p.Name, i)
				}
			}
		})
	}
}

func TestNoClipping(t *testing.T) {
	batch := toyBatch(3, 8, 1)
	var moments [2][]float32
	for i, norm := range []float64{0, 1e9} {
		s, st := newTestStepper(t, newToyPeft(t, false, toyConfig{Targets: mixTargets}), stepConfig{maxGradNorm: norm})
		_, err := s.step(t.Context(), st, []Batch{batch}, 1e-2)
		require.NoError(t, err)
		moments[i] = hostValues(t, st.m)[0]
	}
	requireClose(t, moments[0], moments[1], 1e-7)
}

// B gets a gradient at the first step, A only once B is not zero.
func TestEveryTensorIsTrained(t *testing.T) {
	pm := newToyPeft(t, false, toyConfig{Targets: []string{"layers.0.mix", "layers.1.mix", "lm_head"}, ZeroB: true})
	layout, err := pm.Layout(peft.DefaultAdapter)
	require.NoError(t, err)
	s, st := newTestStepper(t, pm, stepConfig{maxGradNorm: 1})
	for step := 1; step <= 2; step++ {
		_, err := s.step(t.Context(), st, []Batch{toyBatch(4, 8, uint64(step))}, 1e-2)
		require.NoError(t, err)
		moments, err := layout.Host(st.m)
		require.NoError(t, err)
		for name, m := range moments {
			isA := name[len(name)-len("A.weight"):] == "A.weight"
			require.Equal(t, step == 1 && isA, maxDifference(m, make([]float32, len(m))) == 0, "%s after step %d", name, step)
		}
	}
}

func TestBaseNeverChanges(t *testing.T) {
	pm := newToyPeft(t, true, toyConfig{Targets: mixTargets, Full: "embed_tokens.weight"})
	base := pm.Base().(*toy)
	snapshot := func() map[string][]float32 {
		out := map[string][]float32{}
		for v := range base.store.IterVariables() {
			out[v.Path()] = tensors.MustCopyFlatData[float32](v.MustValue())
		}
		return out
	}
	before := snapshot()
	values, err := pm.Arguments()
	require.NoError(t, err)
	start := hostValues(t, values)
	s, st := newTestStepper(t, pm, stepConfig{})
	for i := range 3 {
		_, err := s.step(t.Context(), st, toyBatch(4, 8, uint64(i)).split(2, 1), 1e-1)
		require.NoError(t, err)
	}
	require.Equal(t, before, snapshot())
	require.Equal(t, start, hostValues(t, values), "the model's own values change only by publishing")
	require.NoError(t, st.publish(pm))
	published, err := pm.Arguments()
	require.NoError(t, err)
	require.Equal(t, hostValues(t, st.values), hostValues(t, published))
	_, err = s.step(t.Context(), st, []Batch{toyBatch(4, 8, 9)}, 1e-1)
	require.NoError(t, err)
	require.NotEqual(t, hostValues(t, st.values), hostValues(t, published), "published values survive the next step")
}

func TestNotFiniteLeavesStateAlone(t *testing.T) {
	for _, big := range []bool{false, true} {
		for _, micro := range []int{1, 2} {
			t.Run(fmt.Sprintf("big=%v,micro=%d", big, micro), func(t *testing.T) {
				pm := newToyPeft(t, false, toyConfig{Targets: []string{"layers.0.mix"}, Big: big})
				s, st := newTestStepper(t, pm, stepConfig{maxGradNorm: 1})
				batch := toyBatch(4, 8, 1)
				_, err := s.step(t.Context(), st, batch.split(micro, 1), 1e-2)
				require.NoError(t, err)
				values := hostValues(t, st.values)
				broken := hostValues(t, st.values)
				broken[0][3] = float32(math.NaN())
				good := st.values
				st.values = []*tensors.Tensor{tensors.FromFlatDataAndDimensions(broken[0], len(broken[0]))}
				st.values = append(st.values, good[1:]...)
				m, v := hostValues(t, st.m), hostValues(t, st.v)
				_, err = s.step(t.Context(), st, batch.split(micro, 1), 1e-2)
				require.ErrorIs(t, err, ErrNotFinite)
				require.ErrorContains(t, err, "step 2")
				require.Equal(t, 1, st.step)
				require.Equal(t, values[1:], hostValues(t, st.values[1:]))
				require.Equal(t, m, hostValues(t, st.m))
				require.Equal(t, v, hostValues(t, st.v))
				st.values[0] = good[0]
				_, err = s.step(t.Context(), st, batch.split(micro, 1), 1e-2)
				require.NoError(t, err, "the state can go on")
			})
		}
	}
}

// Tensors of their own arguments take the same steps as those of the flat vector.
func TestLargeTensors(t *testing.T) {
	pm := newToyPeft(t, false, toyConfig{Targets: []string{"layers.0.mix"}, Big: true})
	s, st := newTestStepper(t, pm, stepConfig{maxGradNorm: 1, adamw: AdamW{WeightDecay: 0.1}})
	require.Equal(t, []bool{false, true}, s.large)
	model, err := pm.Arguments()
	require.NoError(t, err)
	for i := range 3 {
		_, err := s.step(t.Context(), st, []Batch{toyBatch(4, 8, uint64(i))}, 1e-3)
		require.NoError(t, err)
	}
	require.NoError(t, model[1].CheckValid(), "the model's own tensor was not donated")
	require.Zero(t, hostValues(t, model[1:])[0][0])
	big := hostValues(t, st.values)[1]
	require.NotZero(t, big[0])
	row := bigShape[1]
	for r := range bigShape[0] { // all elements of a row have the same gradient
		require.Equal(t, big[r*row], big[r*row+row-1])
	}
	// As a reference, the same with the row's sum as the only parameter would need
	// another adapter; that accumulation agrees with the fused program is enough.
	again, other := newTestStepper(t, pm, stepConfig{maxGradNorm: 1, adamw: AdamW{WeightDecay: 0.1}})
	for i := range 3 {
		_, err := again.step(t.Context(), other, toyBatch(4, 8, uint64(i)).split(2, 1), 1e-3)
		require.NoError(t, err)
	}
	requireClose(t, big, hostValues(t, other.values)[1], 1e-6)
}

func TestBadSteps(t *testing.T) {
	pm := newToyPeft(t, false, toyConfig{Targets: mixTargets})
	s, st := newTestStepper(t, pm, stepConfig{})
	good := toyBatch(2, 8, 1)
	empty := good
	empty.Labels = make([]int32, len(good.Labels))
	for i := range empty.Labels {
		empty.Labels[i] = IgnoreIndex
	}
	short := good
	short.IDs = short.IDs[1:]
	for _, c := range []struct {
		name    string
		batches []Batch
		want    string
	}{
		{"no batch", nil, "without a batch"},
		{"short", []Batch{good, short}, "15 ids and 16 labels"},
		{"no target", []Batch{empty, empty}, "nothing to learn"},
		{"one token", []Batch{{Rows: 1, Length: 1, IDs: []int32{1}, Labels: []int32{1}}}, "1 rows of 1 tokens"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := hostValues(t, st.values)
			_, err := s.step(t.Context(), st, c.batches, 1e-2)
			require.ErrorContains(t, err, c.want)
			require.Equal(t, before, hostValues(t, st.values))
			require.Zero(t, st.step)
		})
	}
	_, err := s.step(t.Context(), st, []Batch{empty, good}, 1e-2)
	require.NoError(t, err, "one batch without targets beside another is fine")

	none, err := pm.With()
	require.NoError(t, err)
	_, err = newStepper(none, stepConfig{})
	require.ErrorContains(t, err, "nothing to train")
}

// A panic while the graph is built comes back as an error, from the parallel path too.
type panickingLoss struct{}

func (panickingLoss) Loss(*Run, BatchNodes) (sum, count *graph.Node) { panic("no such node") }

func TestPanicsBecomeErrors(t *testing.T) {
	pm := newToyPeft(t, false, toyConfig{Targets: mixTargets})
	// Pieces of equal shape wait for one another's compilation: none may hang.
	for _, parts := range []int{1, 4} {
		s, st := newTestStepper(t, pm, stepConfig{loss: panickingLoss{}, parts: parts})
		_, err := s.step(t.Context(), st, []Batch{toyBatch(4, 8, 1)}, 1e-2)
		require.ErrorContains(t, err, "no such node")
		_, err = s.evaluate(st.values, toyBatch(4, 8, 1))
		require.ErrorContains(t, err, "no such node")
	}
}

// The result depends on the number of parts and on nothing of the machine.
func TestPartsIgnoreCores(t *testing.T) {
	pm := newToyPeft(t, false, toyConfig{Targets: mixTargets, Dropout: 0.2})
	s, _ := newTestStepper(t, pm, stepConfig{maxGradNorm: 1, parts: defaultParts})
	train := func(cores int) [][]float32 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
		st, err := newState(pm)
		require.NoError(t, err)
		for i := range 4 {
			b := toyBatch(7, 9, uint64(i))
			_, err := s.step(t.Context(), st, []Batch{b, b}, 1e-2)
			require.NoError(t, err)
		}
		return append(hostValues(t, st.values), hostValues(t, st.v)...)
	}
	want := train(1)
	for _, cores := range []int{2, 3, 8} {
		require.Equal(t, want, train(cores), "%d cores", cores)
	}
}
