package models

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/backend/backendtest"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

const encoderFixtures = "../internal/golden/testdata/encoders"

// encoderOutput loads a fixture with its own head and returns its forward function.
func encoderOutput(t testing.TB, dir string) (base site.Base, forward func(p *site.Pass, in site.Tokens) *graph.Node) {
	t.Helper()
	ctx := context.Background()
	name := filepath.Base(dir)
	if strings.HasSuffix(name, "masked") {
		m, err := Load(ctx, dir, float32Options(t))
		require.NoError(t, err)
		require.Zero(t, m.CacheShape())
		require.Empty(t, m.TaskType())
		t.Cleanup(func() { m.Close() })
		return m, func(p *site.Pass, in site.Tokens) *graph.Node { return m.Logits(p, m.Hidden(p, in)) }
	}
	c, err := LoadClassifier(ctx, dir, ClassifierOptions{Options: float32Options(t), PerToken: strings.HasSuffix(name, "token")})
	require.NoError(t, err)
	require.Equal(t, []string{"yes", "no", "maybe"}, c.Labels())
	require.Empty(t, c.LoadReport().New)
	t.Cleanup(func() { c.Close() })
	return c, c.Classify
}

// TestEncoders: logits of transformers, of rows padded on either side, with token types
// and with positions.
func TestEncoders(t *testing.T) {
	folders, err := filepath.Glob(encoderFixtures + "/*_*/model.safetensors")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(folders), 15)
	for _, weights := range folders {
		dir := filepath.Dir(weights)
		name := filepath.Base(dir)
		if name == "bert_trunk" {
			continue // TestTrunk
		}
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			base, forward := encoderOutput(t, dir)
			f, err := safetensors.Open(filepath.Join(dir, "golden.safetensors"))
			require.NoError(t, err)
			defer f.Close()
			get := func(name string) *tensors.Tensor { return golden(t, f, name) }
			mask := func(side string) *tensors.Tensor {
				if strings.HasSuffix(name, "sequence") {
					return nil
				}
				return get(side + "_mask")
			}
			type check struct {
				want string
				in   encoderInput
				mask *tensors.Tensor
			}
			checks := []check{
				{"right_logits", encoderInput{ids: get("right_ids"), segments: get("right_mask")}, mask("right")},
				{"left_logits", encoderInput{ids: get("left_ids"), segments: get("left_mask")}, mask("left")},
				{"plain_logits", encoderInput{ids: get("plain_ids")}, nil},
				{"positions_logits", encoderInput{ids: get("plain_ids"), positions: get("positions")}, nil},
			}
			if _, typed := f.Info("types"); typed {
				checks = append(checks, check{"types_logits", encoderInput{ids: get("right_ids"), segments: get("right_mask"), types: get("types")}, mask("right")})
			}
			var inputs []encoderInput
			for _, c := range checks {
				inputs = append(inputs, c.in)
			}
			for i, got := range forwardAll(t, base, forward, inputs...) {
				requireCloseRows(t, checks[i].want, get(checks[i].want), got, checks[i].mask)
			}
		})
	}
}

// encoderInput is the input of one forward pass; all but the ids may be nil.
type encoderInput struct{ ids, segments, types, positions *tensors.Tensor }

func (in encoderInput) all() []*tensors.Tensor {
	return []*tensors.Tensor{in.ids, in.segments, in.types, in.positions}
}

// forwardAll runs forward passes, all in one program to compile but once.
func forwardAll(t testing.TB, base site.Base, forward func(p *site.Pass, in site.Tokens) *graph.Node, inputs ...encoderInput) []*tensors.Tensor {
	t.Helper()
	var args []any
	for _, in := range inputs {
		for _, x := range in.all() {
			if x != nil {
				args = append(args, x)
			}
		}
	}
	e, err := model.NewExec(base.Backend(), base.Store(), func(_ *model.Scope, nodes []*graph.Node) []*graph.Node {
		p := &site.Pass{Graph: nodes[0].Graph(), DType: base.DType()}
		var out []*graph.Node
		for _, in := range inputs {
			var x [4]*graph.Node
			for i, given := range in.all() {
				if given != nil {
					x[i], nodes = nodes[0], nodes[1:]
				}
			}
			y := forward(p, site.Tokens{IDs: x[0], Segments: x[1], Types: x[2], Positions: x[3]})
			out = append(out, graph.ConvertDType(y, dtypes.Float32))
		}
		return out
	})
	require.NoError(t, err)
	defer e.Finalize()
	out, err := e.Exec(args...)
	require.NoError(t, err)
	return out
}

// requireCloseRows compares the rows, along the last axis, whose mask is not 0.
func requireCloseRows(t testing.TB, what string, want, got, mask *tensors.Tensor) {
	t.Helper()
	require.Equal(t, want.Shape().Dimensions, got.Shape().Dimensions, what)
	w, g := tensors.MustCopyFlatData[float32](want), tensors.MustCopyFlatData[float32](got)
	var keep []int32
	if mask != nil {
		keep = tensors.MustCopyFlatData[int32](mask)
	}
	width := want.Shape().Dim(-1)
	for i := range w {
		if keep == nil || keep[i/width] != 0 {
			require.InDelta(t, w[i], g[i], 1e-4, "%s: row %d, score %d", what, i/width, i%width)
		}
		require.False(t, g[i] != g[i], "%s: NaN in row %d", what, i/width)
	}
}

// TestTrunk: a checkpoint of the trunk alone gets a new head that depends on the seed,
// and says so.
func TestTrunk(t *testing.T) {
	ctx, dir := context.Background(), filepath.Join(encoderFixtures, "bert_trunk")
	load := func(o ClassifierOptions) *Classifier {
		o.Options = float32Options(t)
		c, err := LoadClassifier(ctx, dir, o)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := load(ClassifierOptions{Labels: []string{"a", "b"}, Seed: 1})
	report := c.LoadReport()
	require.Equal(t, []string{"classifier.bias", "classifier.weight"}, report.New)
	require.Equal(t, "pooler.dense.weight", report.Renamed["bert.pooler.dense.weight"])
	require.Len(t, report.Renamed, report.Loaded)
	require.Equal(t, len(c.Parameters()), report.Loaded+2)
	require.Equal(t, "SEQ_CLS", c.TaskType())

	f, err := safetensors.Open(filepath.Join(dir, "golden.safetensors"))
	require.NoError(t, err)
	defer f.Close()
	trunk := func(p *site.Pass, in site.Tokens) *graph.Node { return c.net.encode(newBlocks(p, &c.core), in) }
	got := forwardAll(t, c, trunk, encoderInput{ids: golden(t, f, "right_ids"), segments: golden(t, f, "right_mask"), types: golden(t, f, "types")})
	requireCloseRows(t, "trunk", golden(t, f, "types_logits"), got[0], golden(t, f, "right_mask"))

	weight := func(c *Classifier) []float32 { return values(t, c, "classifier.weight") }
	require.Equal(t, weight(c), weight(load(ClassifierOptions{NumLabels: 2, Seed: 1})))
	require.NotEqual(t, weight(c), weight(load(ClassifierOptions{NumLabels: 2, Seed: 2})))
	require.Equal(t, []float32{0, 0}, values(t, c, "classifier.bias"))

	tokens := load(ClassifierOptions{NumLabels: 4, PerToken: true})
	require.Equal(t, "TOKEN_CLS", tokens.TaskType())
	require.Equal(t, []string{"LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"}, tokens.Labels())
	require.ElementsMatch(t, []string{"bert.pooler.dense.weight", "bert.pooler.dense.bias"}, tokens.LoadReport().Ignored)
}

func values(t testing.TB, base site.Base, name string) []float32 {
	t.Helper()
	v := base.Store().GetVariable(site.VariablePath(name))
	require.NotNil(t, v, name)
	value, err := v.Value()
	require.NoError(t, err)
	return tensors.MustCopyFlatData[float32](value)
}

// TestMaskedLMCheckpointAsClassifier: the head of pre-training is left out, and where
// the pooler is missing, it is new, too.
func TestMaskedLMCheckpointAsClassifier(t *testing.T) {
	for name, fresh := range map[string][]string{
		"bert":       {"bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"},
		"albert":     {"albert.pooler.bias", "albert.pooler.weight", "classifier.bias", "classifier.weight"},
		"roberta":    {"classifier.dense.bias", "classifier.dense.weight", "classifier.out_proj.bias", "classifier.out_proj.weight"},
		"distilbert": {"classifier.bias", "classifier.weight", "pre_classifier.bias", "pre_classifier.weight"},
	} {
		c, err := LoadClassifier(context.Background(), filepath.Join(encoderFixtures, name+"_masked"), ClassifierOptions{Options: float32Options(t), NumLabels: 5})
		require.NoError(t, err, name)
		require.Equal(t, fresh, c.LoadReport().New, name)
		require.NotEmpty(t, c.LoadReport().Ignored, name)
		require.NoError(t, c.Close())
	}
}

func TestOldNames(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(encoderFixtures, "bert_masked"))))
	editWeights(t, dir, func(all map[string]safetensors.Tensor) {
		rename(all, "bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma")
		rename(all, "bert.embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.beta")
		rename(all, "cls.predictions.bias", "cls.predictions.decoder.bias")
		all["bert.embeddings.position_ids"] = safetensors.Tensor{Name: "bert.embeddings.position_ids", DType: safetensors.I64, Shape: []int{1}, Bytes: make([]byte, 8)}
		all["cls.seq_relationship.bias"] = safetensors.Tensor{Name: "cls.seq_relationship.bias", DType: safetensors.F32, Shape: []int{2}, Bytes: make([]byte, 8)}
	})
	m, err := Load(context.Background(), dir, float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, map[string]string{
		"bert.embeddings.LayerNorm.weight": "bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm.bias": "bert.embeddings.LayerNorm.beta",
		"cls.predictions.bias": "cls.predictions.decoder.bias"}, m.LoadReport().Renamed)
	require.Len(t, m.LoadReport().Ignored, 2)
	original, err := Load(context.Background(), filepath.Join(encoderFixtures, "bert_masked"), float32Options(t))
	require.NoError(t, err)
	defer original.Close()
	for _, p := range m.Parameters() {
		require.Equal(t, values(t, original, p.Name), values(t, m, p.Name), p.Name)
	}
	// Both spellings of one parameter are one too many.
	editWeights(t, dir, func(all map[string]safetensors.Tensor) {
		x := all["bert.embeddings.LayerNorm.gamma"]
		x.Name = "bert.embeddings.LayerNorm.weight"
		all[x.Name] = x
	})
	_, err = Load(context.Background(), dir, float32Options(t))
	require.ErrorContains(t, err, "are both parameter")
}

func TestMaskedLMGeneratesNothing(t *testing.T) {
	m, err := Load(context.Background(), filepath.Join(encoderFixtures, "bert_masked"), float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	_, err = m.Generate(context.Background(), "x", GenerateOptions{})
	require.ErrorContains(t, err, "bert: it is an encoder")
}

func TestEncoderPassErrors(t *testing.T) {
	m, err := Load(context.Background(), filepath.Join(encoderFixtures, "bert_masked"), float32Options(t))
	require.NoError(t, err)
	defer m.Close()
	ids := func(n int) *tensors.Tensor { return tensors.FromFlatDataAndDimensions(make([]int32, n), 1, n) }
	fail := func(in func(x *graph.Node) site.Tokens, n int) error {
		e, err := model.NewExec(m.Backend(), m.Store(), func(_ *model.Scope, nodes []*graph.Node) []*graph.Node {
			return []*graph.Node{m.Hidden(&site.Pass{Graph: nodes[0].Graph(), DType: m.DType()}, in(nodes[0]))}
		})
		require.NoError(t, err)
		defer e.Finalize()
		_, err = e.Exec(ids(n))
		return err
	}
	require.ErrorContains(t, fail(func(x *graph.Node) site.Tokens { return site.Tokens{IDs: x} }, 41), "made for 40 positions, got 41 tokens")
	require.ErrorContains(t, fail(func(x *graph.Node) site.Tokens { return site.Tokens{IDs: x, Cache: &site.Cache{}} }, 4), "no key/value cache")
	require.ErrorContains(t, fail(func(x *graph.Node) site.Tokens {
		return site.Tokens{IDs: x, Types: graph.SliceAxis(x, 1, graph.AxisRange(0, 2))}
	}, 4), "token types")
}

// TestPositionBeyondTheLast: no other position's row is used, the output is NaN.
func TestPositionBeyondTheLast(t *testing.T) {
	for name, last := range map[string]int32{"bert_masked": 39, "xlm_roberta_sequence": 35, "distilbert_masked": 39} {
		base, forward := encoderOutput(t, filepath.Join(encoderFixtures, name))
		ids := tensors.FromFlatDataAndDimensions([]int32{5, 6}, 1, 2)
		at := func(position int32) encoderInput {
			return encoderInput{ids: ids, positions: tensors.FromFlatDataAndDimensions([]int32{0, position}, 1, 2)}
		}
		for i, out := range forwardAll(t, base, forward, at(last), at(last+1)) {
			got := tensors.MustCopyFlatData[float32](out)
			require.Equal(t, i == 1, got[0] != got[0], "%s, call %d", name, i)
		}
	}
}

func TestEncoderConfigErrors(t *testing.T) {
	for name, c := range map[string]struct {
		fixture string
		change  map[string]any
		want    string
	}{
		"decoder":      {"bert_masked", map[string]any{"is_decoder": true}, "is_decoder is not supported"},
		"positions":    {"bert_masked", map[string]any{"position_embedding_type": "relative_key"}, `position_embedding_type "relative_key" is not supported`},
		"heads":        {"bert_masked", map[string]any{"num_attention_heads": 3}, "hidden_size 16 is no multiple of num_attention_heads 3"},
		"dropout":      {"bert_masked", map[string]any{"hidden_dropout_prob": 1}, "hidden_dropout_prob: wanted a number from 0 to less than 1, got 1"},
		"activation":   {"distilbert_masked", map[string]any{"activation": "prelu"}, `activation "prelu" is not supported`},
		"padding":      {"roberta_masked", map[string]any{"pad_token_id": 39}, "pad_token_id: wanted 0 to 38"},
		"groups":       {"albert_masked", map[string]any{"num_hidden_groups": 9}, "num_hidden_groups: wanted at most num_hidden_layers 3, got 9"},
		"pruned heads": {"bert_masked", map[string]any{"pruned_heads": map[string]any{"0": []int{1}}}, "pruned_heads"},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Sample(t, 5)
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Join(encoderFixtures, c.fixture))))
			editConfig(t, dir, c.change)
			_, err := Load(context.Background(), dir, float32Options(t))
			require.ErrorContains(t, err, c.want)
		})
	}
}
