package prefixtuning_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/basetest"
	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/prefixtuning"
	"github.com/gopeft/gopeft/site"
)

// methods are one configuration of each method.
func methods(n int) map[string]peft.Config {
	return map[string]peft.Config{
		"prefix":     prefixtuning.PrefixTuningConfig{NumVirtualTokens: n},
		"projection": prefixtuning.PrefixTuningConfig{NumVirtualTokens: n, PrefixProjection: true},
		"prompt":     prefixtuning.PromptTuningConfig{NumVirtualTokens: n},
		"P-tuning":   prefixtuning.PromptEncoderConfig{NumVirtualTokens: n, EncoderReparameterizationType: prefixtuning.LSTM},
		"multitask":  prefixtuning.MultitaskPromptTuningConfig{NumVirtualTokens: n, NumRanks: 2},
	}
}

func family(t testing.TB, name string) *models.Model {
	return basetest.Load(t, fixture(t, "families", name))
}

func attach(t testing.TB, base site.Base, c peft.Config) *peft.PeftModel {
	t.Helper()
	pm, err := peft.GetPeftModel(base, c, peft.Options{Seed: 7})
	require.NoError(t, err)
	return pm
}

// texts are rows of unequal length.
var texts = [][]int32{{5, 9, 33, 7, 12, 41, 8, 3, 60}, {22, 17, 29, 11, 40}, {50, 4}}

// placed are the texts in one batch: where each token is, and what belongs to it.
type placed struct {
	ids, positions, segments [][]int32
	// at says where token i of text r stands.
	at func(r, i int) (row, column int)
}

func alone() placed {
	p := placed{at: func(r, i int) (int, int) { return r, i }}
	p.pad(func(r int) int { return 0 })
	return p
}

func onTheLeft() placed {
	p := placed{at: func(r, i int) (int, int) { return r, i + len(texts[0]) - len(texts[r]) }}
	p.pad(func(r int) int { return len(texts[0]) - len(texts[r]) })
	return p
}

func (p *placed) pad(before func(r int) int) {
	for r, text := range texts {
		ids, positions, segments := make([]int32, len(texts[0])), make([]int32, len(texts[0])), make([]int32, len(texts[0]))
		for i, id := range text {
			c := before(r) + i
			ids[c], positions[c], segments[c] = id, int32(i), 1
		}
		p.ids, p.positions, p.segments = append(p.ids, ids), append(p.positions, positions), append(p.segments, segments)
	}
}

func packed() placed {
	var offsets []int
	var ids, positions, segments []int32
	for r, text := range texts {
		offsets = append(offsets, len(ids))
		for i, id := range text {
			ids, positions, segments = append(ids, id), append(positions, int32(i)), append(segments, int32(r+1))
		}
	}
	return placed{[][]int32{ids}, [][]int32{positions}, [][]int32{segments}, func(r, i int) (int, int) { return 0, offsets[r] + i }}
}

// scores gives those of each text's tokens.
func (p placed) scores(t *testing.T, pm *peft.PeftModel) func(r, i int) []float32 {
	flat := run(t, pm, input{ids: tensors.FromValue(p.ids), positions: tensors.FromValue(p.positions), segments: tensors.FromValue(p.segments)}).scores
	length := len(p.ids[0])
	width := len(flat) / len(p.ids) / length
	return func(r, i int) []float32 {
		row, column := p.at(r, i)
		at := (row*length + column) * width
		return flat[at : at+width]
	}
}

// Rows mean the same padded on the right, padded on the left, and packed into one.
func TestPlaces(t *testing.T) {
	for _, name := range []string{"llama", "gpt2", "mistral", "gemma3_text", "opt"} {
		for method, config := range methods(3) {
			t.Run(name+"/"+method, func(t *testing.T) {
				backendtest.Sample(t, 12)
				pm := attach(t, family(t, name), config)
				right, left, one := alone().scores(t, pm), onTheLeft().scores(t, pm), packed().scores(t, pm)
				for r, text := range texts {
					for i := range text {
						what := fmt.Sprintf("text %d, token %d", r, i)
						basetest.RequireClose(t, right(r, i), left(r, i), 1e-5, what+", padded on the left")
						basetest.RequireClose(t, right(r, i), one(r, i), 1e-5, what+", packed")
					}
				}
			})
		}
	}
}

// Rows of encoders, too, but for prompts of embeddings, which see all texts that they are
// packed with: that is no number.
func TestPlacesOfEncoders(t *testing.T) {
	for _, name := range []string{"bert_masked", "roberta_masked", "distilbert_masked", "albert_masked"} {
		for method, config := range methods(3) {
			t.Run(name+"/"+method, func(t *testing.T) {
				backendtest.Sample(t, 6)
				pm := attach(t, basetest.Load(t, fixture(t, "encoders", name)), config)
				right, left, one := alone().scores(t, pm), onTheLeft().scores(t, pm), packed().scores(t, pm)
				for r, text := range texts {
					for i := range text {
						basetest.RequireClose(t, right(r, i), left(r, i), 1e-5, "padded on the left")
						if method == "prefix" || method == "projection" {
							basetest.RequireClose(t, right(r, i), one(r, i), 1e-5, "packed")
						} else {
							require.True(t, math.IsNaN(float64(one(r, i)[0])), "packed behind a prompt")
						}
					}
				}
			})
		}
	}
}

// A prefix of a text's keys and values, or a prompt of its embeddings, is that text: tokens
// after it get the scores that they get after the text itself.
func TestStartsAtText(t *testing.T) {
	text := []int32{7, 21, 13}
	for _, name := range []string{"llama", "qwen2", "gpt2", "gemma2", "opt", "gpt_neox"} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 3)
			base := family(t, name)
			n := len(texts[0])
			full, err := peft.GetPeftModel(base, peft.Full{})
			require.NoError(t, err)
			bare, err := full.With()
			require.NoError(t, err)
			after := run(t, bare, input{ids: tensors.FromValue([][]int32{append(append([]int32{}, text...), texts[0]...)})}).scores
			want := after[len(after)/(n+len(text))*len(text):]

			pm := attach(t, base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: len(text)})
			require.NoError(t, prefixtuning.SetTokens(pm, peft.DefaultAdapter, append(append([]int32{}, text...), 44)))
			basetest.RequireClose(t, want, run(t, pm, input{ids: tensors.FromValue(texts[:1])}).scores, 1e-5, "prefix")

			prompt := attach(t, base, prefixtuning.PromptTuningConfig{NumVirtualTokens: len(text)})
			rows, err := peft.ReadRows(base, base.Words(), []int{7, 21, 13})
			require.NoError(t, err)
			for i := range rows {
				rows[i] *= float32(base.WordScale())
			}
			layout, err := prompt.Layout(peft.DefaultAdapter)
			require.NoError(t, err)
			values, err := layout.FromHost(map[string][]float32{"prompt_embeddings": rows})
			require.NoError(t, err)
			require.NoError(t, prompt.SetValues(peft.DefaultAdapter, values))
			basetest.RequireClose(t, want, run(t, prompt, input{ids: tensors.FromValue(texts[:1])}).scores, 1e-5, "prompt")
		})
	}
}

func TestSetTokensErrors(t *testing.T) {
	base := family(t, "llama")
	prefix := attach(t, base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3})
	require.ErrorContains(t, prefixtuning.SetTokens(prefix, "other", []int32{1, 2, 3}), "unknown adapter")
	require.ErrorContains(t, prefixtuning.SetTokens(prefix, peft.DefaultAdapter, []int32{1, 2}), "the text has 2 tokens, want at least the 3 virtual ones")
	require.ErrorContains(t, prefixtuning.SetTokens(prefix, peft.DefaultAdapter, []int32{1, 64, 3}), "token 1 of the text is 64, want 0 to 63")
	require.ErrorContains(t, prefixtuning.SetText(prefix, peft.DefaultAdapter, "text", nil), "prefix text without tokenizer")
	network := attach(t, base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3, PrefixProjection: true})
	require.ErrorContains(t, prefixtuning.SetTokens(network, peft.DefaultAdapter, []int32{1, 2, 3}), "prefix_projection")
	prompt := attach(t, base, prefixtuning.PromptTuningConfig{NumVirtualTokens: 3})
	require.ErrorContains(t, prefixtuning.SetTokens(prompt, peft.DefaultAdapter, []int32{1, 2, 3}), "no prefix of keys and values")
	encoder := attach(t, loadClassifier(t, fixture(t, "encoders", "bert_sequence"), false), prefixtuning.PrefixTuningConfig{NumVirtualTokens: 3})
	require.ErrorContains(t, prefixtuning.SetTokens(encoder, peft.DefaultAdapter, []int32{1, 2, 3}), "does not read from left to right")
}

// One token of one layer, by hand: softmax over the prefix's keys and its own.
func TestAttentionOverPrefix(t *testing.T) {
	config := `{"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
		"head_dim": 2, "intermediate_size": 4, "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "initializer_range": 0.5}`
	base, err := models.New(t.Context(), []byte(config), 3, models.Options{On: backendtest.Open(t), DType: dtypes.Float32})
	require.NoError(t, err)
	defer base.Close()
	const n, heads, size = 3, 2, 2
	pm := attach(t, base, prefixtuning.PrefixTuningConfig{NumVirtualTokens: n})
	values, err := pm.TensorValues(peft.DefaultAdapter)
	require.NoError(t, err)
	flat := values["prompt_embeddings"] // [n, key and value, size]
	require.Len(t, flat, n*2*size)

	// What the attention's output projection gets is seen by a hook.
	arguments, err := pm.Arguments()
	require.NoError(t, err)
	exec, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, in []*graph.Node) []*graph.Node {
		binding, err := pm.Bind(in[1:])
		require.NoError(t, err)
		seen := map[string]*graph.Node{}
		hook := watching{binding, seen}
		hidden := base.Hidden(&site.Pass{Graph: in[0].Graph(), DType: dtypes.Float32, Hook: hook}, site.Tokens{IDs: in[0]})
		return []*graph.Node{seen["q"], seen["k"], seen["v"], seen["model.layers.0.self_attn.o_proj"], hidden}
	})
	require.NoError(t, err)
	defer exec.Finalize()
	results, err := exec.Exec([][]int32{{5}}, arguments[0])
	require.NoError(t, err)
	q, k, v, got := basetest.Flat(t, results[0]), basetest.Flat(t, results[1]), basetest.Flat(t, results[2]), basetest.Flat(t, results[3])

	turn := func(x []float32, position float64) [2]float64 { // the rotation of a head of size 2
		sin, cos := math.Sincos(position)
		return [2]float64{float64(x[0])*cos - float64(x[1])*sin, float64(x[1])*cos + float64(x[0])*sin}
	}
	own := turn(k, n)
	for head := range heads {
		query := turn(q[head*size:], n)
		var weights []float64
		var total float64
		keyed := func(a, b float64) {
			w := math.Exp((query[0]*a + query[1]*b) / math.Sqrt(size))
			weights, total = append(weights, w), total+w
		}
		for j := range n { // keys of the prefix are not turned
			keyed(float64(flat[j*2*size]), float64(flat[j*2*size+1]))
		}
		keyed(own[0], own[1])
		for d := range size {
			sum := weights[n] * float64(v[d])
			for j := range n {
				sum += weights[j] * float64(flat[j*2*size+size+d])
			}
			require.InDelta(t, sum/total, got[head*size+d], 1e-5)
		}
	}
}

// watching notes outputs of projections, and the input of the last.
type watching struct {
	*peft.Binding
	seen map[string]*graph.Node
}

func (w watching) Apply(p *site.Pass, s *site.Site) *graph.Node {
	y := w.Binding.Apply(p, s)
	for _, name := range []string{"q", "k", "v"} {
		if s.Path == "model.layers.0.self_attn."+name+"_proj" {
			w.seen[name] = y
		}
	}
	w.seen[s.Path] = s.X
	return y
}

// Generation is what reading everything anew for each token gives, for prompts of unequal
// length, the longest read in chunks.
func TestGenerates(t *testing.T) {
	config := `{"model_type": "%s", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
		"intermediate_size": 24, "max_position_embeddings": 1200, "rms_norm_eps": 1e-5, "initializer_range": 0.4, "sliding_window": %s}`
	for arch, window := range map[string]string{"llama": "null", "mistral": "600"} {
		base, err := models.New(t.Context(), fmt.Appendf(nil, config, arch, window), 3, models.Options{On: backendtest.Open(t), DType: dtypes.Float32})
		require.NoError(t, err)
		defer base.Close()
		for name, c := range methods(5) {
			t.Run(arch+"/"+name, func(t *testing.T) {
				backendtest.Sample(t, 10)
				pm := attach(t, base, c)
				prompts := [][]int32{long(5), long(1), long(600)}
				generator, err := models.NewGenerator(pm)
				require.NoError(t, err)
				defer generator.Close()
				const steps = 3
				out, err := generator.Generate(t.Context(), prompts, models.GenerateOptions{MaxNewTokens: steps, StopTokens: []int32{}, LogProbs: true})
				require.NoError(t, err)
				for r, prompt := range prompts {
					for step := range steps {
						scores := run(t, pm, input{ids: tensors.FromValue([][]int32{prompt})}).scores
						best, p := choose(scores[len(scores)-40:])
						require.Equal(t, best, out[r].IDs[step], "prompt %d, token %d", r, step)
						require.InDelta(t, p, out[r].LogProbs[step], 1e-4)
						prompt = append(prompt, best)
					}
				}
			})
		}
	}
}

func long(n int) []int32 {
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(3 + (i*i*7+i*5+n)%37)
	}
	return ids
}

// choose returns the largest of some scores and the logarithm of its probability.
func choose(scores []float32) (best int32, logProb float64) {
	sum := 0.0
	for i, s := range scores {
		if s > scores[best] {
			best = int32(i)
		}
		sum += math.Exp(float64(s))
	}
	return best, float64(scores[best]) - math.Log(sum)
}

// Classifiers of tokens score the tokens alone: with a prompt of embeddings of tokens what
// they score behind these.
func TestTokenClassifier(t *testing.T) {
	for _, name := range []string{"bert_token", "roberta_token", "distilbert_token", "albert_token"} {
		t.Run(name, func(t *testing.T) {
			base := loadClassifier(t, fixture(t, "encoders", name), true)
			words := base.Words()
			virtual := []int{7, 21, 13}
			pm := attach(t, base, prefixtuning.PromptTuningConfig{NumVirtualTokens: len(virtual)})
			rows, err := peft.ReadRows(base, words, virtual)
			require.NoError(t, err)
			values, err := pm.TensorValues(peft.DefaultAdapter)
			require.NoError(t, err)
			values["prompt_embeddings"] = rows
			layout, err := pm.Layout(peft.DefaultAdapter)
			require.NoError(t, err)
			arguments, err := layout.FromHost(values)
			require.NoError(t, err)
			require.NoError(t, pm.SetValues(peft.DefaultAdapter, arguments))
			ids := []int32{5, 9, 33, 7, 12}
			got := run(t, pm, input{ids: tensors.FromValue([][]int32{ids})}).scores
			require.Len(t, got, len(ids)*base.NumLabels())
			bare, err := pm.With()
			require.NoError(t, err)
			all := run(t, bare, input{ids: tensors.FromValue([][]int32{append([]int32{7, 21, 13}, ids...)})}).scores
			basetest.RequireClose(t, all[len(virtual)*base.NumLabels():], got, 1e-5, name)
		})
	}
}
