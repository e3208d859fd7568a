package models

import (
	"maps"
	"math"
	"slices"

	"github.com/gomlx/compute/dtypes"
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

func init() {
	for modelType, family := range map[string]gemmaFamily{
		"gemma":       {positions: 8192},
		"gemma2":      {positions: 8192, second: true, windowPattern: 2, scoreCap: 50, logitCap: 30},
		"gemma3_text": {positions: 131072, second: true, windowPattern: 6, third: true},
	} {
		Register(modelType, func(configJSON []byte) (Architecture, error) { return newGemma(configJSON, family) })
	}
}

// gemmaFamily says in what the generations of Gemma differ (Gemma team 2024 and 2025,
// arXiv:2403.08295, 2408.00118 and 2503.19786).
type gemmaFamily struct {
	positions          int     // default of max_position_embeddings
	second             bool    // from Gemma 2 on: outer norms, query_pre_attn_scalar, windows, softcapping
	third              bool    // Gemma 3: norms of q and k, own rotary embeddings for layers with a window
	windowPattern      int     // every how manieth layer has no window, where layer_types is absent
	scoreCap, logitCap float64 // defaults of attn_logit_softcapping and final_logit_softcapping; 0: none
}

func newGemma(configJSON []byte, family gemmaFamily) (Architecture, error) {
	f, err := newFields(configJSON)
	if err != nil {
		return nil, err
	}
	config := commonConfig(f, configJSON, family.positions)
	config.TieWordEmbeddings = f.flag("tie_word_embeddings", true)
	f.require("num_key_value_heads", "a positive integer") // transformers' default is no function of the others
	m := newDecoder(f, config, 256)
	m.qkvBias = f.flag("attention_bias", false)
	m.oBias = m.qkvBias
	m.offsetNorm = true
	m.embedScale = math.Sqrt(float64(config.HiddenSize))
	m.windows = make([]int, config.NumLayers)
	if family.second {
		m.readGemma2(f, family)
	} else {
		m.act = gemmaAct(f)
		m.rope = newRope(f, m.headDim, config.MaxPositions)
		refuseOptions(f)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return m, nil
}

// gemmaAct reads hidden_act of the first Gemma, whose checkpoints say gelu and mean the
// tanh approximation.
func gemmaAct(f *fields) activation {
	const tanh = "gelu_pytorch_tanh"
	name := f.textOr("hidden_act", tanh)
	if name == "gelu" {
		name = tanh
	}
	if other := f.textOr("hidden_activation", name); other != name {
		f.fail("hidden_activation %q contradicts hidden_act %q", other, name)
	}
	return f.actNamed("hidden_act", name)
}

// readGemma2 reads what Gemma has from its second generation on.
func (m *llama) readGemma2(f *fields, family gemmaFamily) {
	m.outerNorms = true
	m.act = f.act("hidden_activation", "gelu_pytorch_tanh")
	m.scoreScale = 1 / math.Sqrt(f.numberOr("query_pre_attn_scalar", 256))
	m.windows = gemmaWindows(f, m.config.NumLayers, family)
	m.logitCap = f.numberUnlessNull("final_logit_softcapping", family.logitCap)
	known := []string{"query_pre_attn_scalar", "final_logit_softcapping"}
	if family.third {
		// transformers reads attn_logit_softcapping but does not apply it: refused below.
		m.qkNorm = true
		m.rope, m.localRope = gemma3Ropes(f, m.headDim, m.config.MaxPositions)
	} else {
		m.scoreCap = f.numberUnlessNull("attn_logit_softcapping", family.scoreCap)
		m.rope = newRope(f, m.headDim, m.config.MaxPositions)
		known = append(known, "attn_logit_softcapping")
	}
	refuseOptions(f, known...)
}

// gemmaWindows returns how far each layer sees, see [windows].
func gemmaWindows(f *fields, layers int, family gemmaFamily) []int {
	out := make([]int, layers)
	window, pattern := f.window(4096), family.windowPattern
	if family.third {
		pattern = f.sizeOr("sliding_window_pattern", pattern)
	}
	kinds := f.layerTypes(layers)
	for i := range out {
		sliding := (i+1)%pattern != 0
		if kinds != nil {
			sliding = kinds[i] == "sliding_attention"
		}
		if !sliding {
			continue
		}
		if window == 0 {
			f.fail("sliding_window is null but layer %d has a window", i)
			return out
		}
		out[i] = window
	}
	return out
}

// gemma3Ropes reads the rotary embeddings of layers that see everything, and of those
// with a window. Before transformers 5, rope_scaling is of the former alone.
func gemma3Ropes(f *fields, headDim, maxPositions int) (global, local *rope) {
	const full, sliding = "full_attention", "sliding_attention"
	parameters := f.object("rope_parameters")
	if parameters == nil {
		parameters = &fields{where: f.where + ": rope_parameters", errs: f.errs}
	}
	for _, name := range sortedKeys(parameters.values) {
		if !slices.Contains([]string{full, sliding}, name) {
			parameters.fail("option %q is not supported; wanted %s, %s", name, full, sliding)
		}
	}
	globalFields := parameters.object(full)
	if scaling := f.object("rope_scaling"); scaling != nil {
		if scaling.has("type") && !scaling.has("rope_type") {
			scaling.fail("type is not supported: wanted rope_type") // transformers would ignore it
		}
		if globalFields != nil {
			added := scaling.values
			scaling.values = maps.Clone(globalFields.values)
			maps.Copy(scaling.values, added)
		}
		globalFields = scaling
	}
	read := func(r *fields, theta float64) *rope {
		o := ropeOptions{theta: theta, dims: headDim, maxPositions: maxPositions}
		if r != nil {
			o.original = r.sizeOr("original_max_position_embeddings", maxPositions)
		}
		return readRope(f, r, o)
	}
	return read(globalFields, f.numberOr("rope_theta", 1e6)), read(parameters.object(sliding), f.numberOr("rope_local_base_freq", 10000))
}

// OffsetRMSNorm is x/√(mean(x²)+eps)·(1+weight) over the last axis, all of it in float32
// and then rounded to x's dtype, as in Hugging Face's Gemma.
func (b *Blocks) OffsetRMSNorm(path string, x *Node, eps float64) *Node {
	return b.recomputed([]*Node{x}, func(in []*Node) *Node {
		return b.apply(path, in[0], func(m site.Module, x *Node) *Node {
			scale := AddScalar(ConvertDType(b.Weight(m.Weight()), dtypes.Float32), 1)
			return ConvertDType(rmsNorm(ConvertDType(x, dtypes.Float32), scale, m.In, eps), x.DType())
		}, nil)
	})
}

// softCap bounds x smoothly by limit, limit·tanh(x/limit), in float32; 0: not at all.
func softCap(x *Node, limit float64) *Node {
	if limit == 0 {
		return x
	}
	wide := ConvertDType(x, dtypes.Float32)
	return ConvertDType(MulScalar(Tanh(MulScalar(wide, 1/limit)), limit), x.DType())
}
