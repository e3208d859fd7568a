package models

import (
	"math"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
)

// rope is the rotary position embedding of one model: the angle of pair i at
// position p is p·invFreq[i], and the first half of a head is paired with the
// second (Su et al. 2021, in the layout of Hugging Face's Llama).
type rope struct {
	// invFreq has headDim/2 inverse frequencies in radians per position.
	invFreq []float32
	// attentionFactor multiplies cos and sin (YaRN); 1 otherwise.
	attentionFactor float64
	// dynamic, if not nil, replaces invFreq beyond the original length.
	dynamic *dynamicNTK
}

// dynamicNTK raises the base with the length n of the sequence once it exceeds
// maxPositions: base·(factor·n/maxPositions − (factor−1))^(dim/(dim−2)).
type dynamicNTK struct {
	base, factor float64
	maxPositions int
}

// newRope reads rope_parameters (transformers 5) or rope_scaling and rope_theta
// (before). The formulas are those of transformers' modeling_rope_utils.
func newRope(f *fields, headDim, maxPositions int) *rope {
	if headDim%2 != 0 {
		f.fail("head_dim: rotary embeddings need an even head_dim, got %d", headDim)
		return nil
	}
	r := f.object("rope_scaling") // comes first in transformers too, where both are given
	if r == nil || len(r.values) == 0 {
		r = f.object("rope_parameters")
	}
	theta := f.numberOr("rope_theta", 10000)
	if r == nil {
		return &rope{invFreq: inverseFrequencies(theta, headDim), attentionFactor: 1}
	}
	checkRopeKeys(r)
	theta = r.numberOr("rope_theta", theta)
	if partial := r.numberOr("partial_rotary_factor", 1); partial != 1 {
		r.fail("partial_rotary_factor %g is not supported: wanted 1", partial)
	}
	kind := r.textOr("rope_type", r.textOr("type", "default"))
	out := &rope{invFreq: inverseFrequencies(theta, headDim), attentionFactor: 1}
	switch kind {
	case "default":
	case "linear":
		factor := float32(r.number("factor"))
		for i := range out.invFreq {
			out.invFreq[i] /= factor
		}
	case "dynamic":
		if headDim == 2 {
			r.fail("rope_type dynamic needs a head_dim above 2")
		}
		out.dynamic = &dynamicNTK{base: theta, factor: r.number("factor"), maxPositions: maxPositions}
	case "llama3":
		out.llama3(r, originalPositions(f, r, maxPositions))
	case "yarn":
		out.yarn(r, theta, headDim, maxPositions, originalPositions(f, r, maxPositions))
	default:
		r.fail("rope_type %q is not supported; supported are default, linear, dynamic, llama3, yarn", kind)
	}
	return out
}

// checkRopeKeys refuses members that nobody here knows. Known members that the
// type does not use are ignored, as transformers ignores them.
func checkRopeKeys(r *fields) {
	known := []string{"rope_type", "type", "rope_theta", "factor", "partial_rotary_factor",
		"original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "low_freq_factor",
		"high_freq_factor", "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor", "finetuned"}
	for _, name := range sortedKeys(r.values) {
		if r.has(name) && !slices.Contains(known, name) {
			r.fail("option %q is not supported", name)
		}
	}
}

func originalPositions(f, r *fields, maxPositions int) int {
	return f.sizeOr("original_max_position_embeddings", r.sizeOr("original_max_position_embeddings", maxPositions))
}

// inverseFrequencies returns theta^(−2i/dim) for i in [0, dim/2), each step
// rounded to float32 as transformers computes it.
func inverseFrequencies(theta float64, dim int) []float32 {
	out := make([]float32, dim/2)
	for i := range out {
		exponent := float32(2*i) / float32(dim)
		out[i] = 1 / float32(math.Pow(theta, float64(exponent)))
	}
	return out
}

// llama3 divides the low frequencies by factor and interpolates in between.
func (o *rope) llama3(r *fields, original int) {
	factor, low, high := r.number("factor"), r.number("low_freq_factor"), r.number("high_freq_factor")
	if high <= low && r.has("low_freq_factor") && r.has("high_freq_factor") {
		r.fail("high_freq_factor: wanted more than low_freq_factor %g, got %g", low, high)
		return
	}
	for i, freq := range o.invFreq {
		wavelength := 2 * math.Pi / float64(freq)
		switch {
		case wavelength < float64(original)/high:
		case wavelength > float64(original)/low:
			o.invFreq[i] = float32(float64(freq) / factor)
		default:
			smooth := (float64(original)/wavelength - low) / (high - low)
			o.invFreq[i] = float32((1-smooth)*float64(freq)/factor + smooth*float64(freq))
		}
	}
}

// yarn interpolates the low frequencies and keeps the high ones, with a linear
// ramp between the dimensions that turn betaFast and betaSlow times over the
// original length (Peng et al. 2023, arXiv:2309.00071).
func (o *rope) yarn(r *fields, theta float64, dim, maxPositions, original int) {
	factor := r.numberOr("factor", float64(maxPositions)/float64(original))
	o.attentionFactor = r.numberOr("attention_factor", yarnAttentionFactor(r, factor))
	turns := func(n float64) float64 {
		return float64(dim) * math.Log(float64(original)/(n*2*math.Pi)) / (2 * math.Log(theta))
	}
	low, high := turns(r.numberOr("beta_fast", 32)), turns(r.numberOr("beta_slow", 1))
	if r.flag("truncate", true) {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(dim-1))
	if low == high {
		high += 0.001
	}
	for i, freq := range o.invFreq {
		ramp := min(max((float64(i)-low)/(high-low), 0), 1)
		o.invFreq[i] = float32(float64(freq)/factor*ramp + float64(freq)*(1-ramp))
	}
}

func yarnAttentionFactor(r *fields, factor float64) float64 {
	scale := func(m float64) float64 {
		if factor <= 1 {
			return 1
		}
		return 0.1*m*math.Log(factor) + 1
	}
	if r.has("mscale") && r.has("mscale_all_dim") {
		return scale(r.numberOr("mscale", 1)) / scale(r.numberOr("mscale_all_dim", 1))
	}
	return scale(1)
}

// rotation holds what the heads of one pass are turned by, float32: cos and sin
// of each pair, [batch or 1, length, 1, headDim/2]. Where broadcasts are dear (the
// Go backend) they are given each head and half once: [batch, length, heads, headDim].
type rotation struct {
	cos, sin *Node
	full     bool
}

// tables computes the rotation of each position, [batch or 1, length] int32, for
// queries or keys of shape [batch, length, heads, headDim]. What it turns it also
// multiplies by scale.
func (o *rope) tables(positions *Node, batch, heads int, scale float64) rotation {
	length, pairs := positions.Shape().Dimensions[1], len(o.invFreq)
	angles := ConvertDType(Reshape(positions, -1, length, 1, 1), dtypes.Float32)
	angles = Mul(angles, Reshape(o.frequencies(positions), 1, 1, 1, pairs))
	t := rotation{cos: Cos(angles), sin: Sin(angles)}
	if scale *= o.attentionFactor; scale != 1 {
		t.cos, t.sin = MulScalar(t.cos, scale), MulScalar(t.sin, scale)
	}
	if graphx.Fused(positions) {
		t.full = true
		t.cos = BroadcastToDims(Concatenate([]*Node{t.cos, t.cos}, 3), batch, length, heads, 2*pairs)
		t.sin = BroadcastToDims(Concatenate([]*Node{Neg(t.sin), t.sin}, 3), batch, length, heads, 2*pairs)
	}
	return t
}

// frequencies returns the inverse frequencies for a pass, [headDim/2] float32.
// The dynamic ones depend on the largest position of this pass alone: unlike
// transformers' module, a graph remembers no earlier, longer pass.
func (o *rope) frequencies(positions *Node) *Node {
	g := positions.Graph()
	if o.dynamic == nil {
		return Const(g, o.invFreq)
	}
	d, dim := o.dynamic, 2*len(o.invFreq)
	length := ConvertDType(AddScalar(ReduceAllMax(positions), 1), dtypes.Float32)
	length = MaxScalar(length, float64(d.maxPositions))
	grown := AddScalar(MulScalar(length, d.factor/float64(d.maxPositions)), 1-d.factor)
	logBase := AddScalar(MulScalar(Log(grown), float64(dim)/float64(dim-2)), math.Log(d.base))
	exponents := MulScalar(Iota(g, shapes.Make(dtypes.Float32, len(o.invFreq)), 0), -2/float64(dim))
	return Exp(Mul(exponents, BroadcastToDims(logBase, len(o.invFreq))))
}

// rotate turns the pairs of x, [batch, length, heads, headDim], in float32 and
// returns x's dtype.
func (t rotation) rotate(x *Node) *Node {
	half := x.Shape().Dimensions[3] / 2
	wide := ConvertDType(x, dtypes.Float32)
	first := SliceAxis(wide, 3, AxisRange(0, half))
	second := SliceAxis(wide, 3, AxisRange(half))
	if t.full {
		turned := Add(Mul(wide, t.cos), Mul(Concatenate([]*Node{second, first}, 3), t.sin))
		return ConvertDType(turned, x.DType())
	}
	turned := Concatenate([]*Node{
		Sub(Mul(first, t.cos), Mul(second, t.sin)),
		Add(Mul(second, t.cos), Mul(first, t.sin)),
	}, 3)
	return ConvertDType(turned, x.DType())
}
