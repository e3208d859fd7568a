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
// position p is p·invFreq[i], and the first half of the rotated features of a head
// is paired with the second (Su et al. 2021, in the layout of Hugging Face's Llama).
type rope struct {
	// invFreq are the inverse frequencies of the pairs in radians per position. With
	// fewer than headDim/2 of them, the rest of a head stays as it is.
	invFreq []float32
	// attentionFactor multiplies cos and sin (YaRN, LongRoPE); 1 otherwise.
	attentionFactor float64
	// dynamic, if not nil, replaces invFreq beyond the original length.
	dynamic *dynamicNTK
	// long, if not nil, replaces invFreq beyond longAfter positions (LongRoPE).
	long      []float32
	longAfter int
}

// dynamicNTK raises the base with the length n of the sequence once it exceeds
// maxPositions: base·(factor·n/maxPositions − (factor−1))^(dim/(dim−2)).
type dynamicNTK struct {
	base, factor float64
	maxPositions int
}

// ropeOptions is what a family says about its rotary embeddings beside the members of
// the rope object.
type ropeOptions struct {
	theta        float64
	dims         int  // rotated features of a head
	partial      bool // dims already follow from partial_rotary_factor
	maxPositions int
	original     int               // original_max_position_embeddings
	aliases      map[string]string // other names of rope types
}

// newRope reads rope_parameters (transformers 5) or rope_scaling and rope_theta
// (before). The formulas are those of transformers' modeling_rope_utils.
func newRope(f *fields, headDim, maxPositions int) *rope {
	r := ropeObject(f)
	o := ropeOptions{theta: f.numberOr("rope_theta", 10000), dims: headDim, maxPositions: maxPositions}
	if r != nil {
		o.original = originalPositions(f, r, maxPositions)
	}
	return readRope(f, r, o)
}

// ropeObject returns the object that describes the rotary embeddings; nil if there is none.
func ropeObject(f *fields) *fields {
	r := f.object("rope_scaling") // comes first in transformers too, where both are given
	if r == nil || len(r.values) == 0 {
		r = f.object("rope_parameters")
	}
	return r
}

// readRope reads the rope object r of f, which may be nil.
func readRope(f, r *fields, o ropeOptions) *rope {
	if o.dims%2 != 0 || o.dims < 2 {
		f.fail("head_dim: rotary embeddings need an even head_dim, got %d", o.dims)
		return nil
	}
	if r == nil {
		return &rope{invFreq: inverseFrequencies(o.theta, o.dims), attentionFactor: 1}
	}
	checkRopeKeys(r)
	o.theta = r.numberOr("rope_theta", o.theta)
	if partial := r.numberOr("partial_rotary_factor", 1); partial != 1 && !o.partial {
		r.fail("partial_rotary_factor %g is not supported: wanted 1", partial)
	}
	kind := r.textOr("rope_type", r.textOr("type", "default"))
	if alias := o.aliases[kind]; alias != "" {
		kind = alias
	}
	out := &rope{invFreq: inverseFrequencies(o.theta, o.dims), attentionFactor: 1}
	switch kind {
	case "default":
	case "linear":
		factor := float32(r.number("factor"))
		for i := range out.invFreq {
			out.invFreq[i] /= factor
		}
	case "dynamic":
		if o.dims == 2 {
			r.fail("rope_type dynamic needs a head_dim above 2")
		}
		out.dynamic = &dynamicNTK{base: o.theta, factor: r.number("factor"), maxPositions: o.maxPositions}
	case "llama3":
		out.llama3(r, o.original)
	case "yarn":
		out.yarn(r, o.theta, o.dims, o.maxPositions, o.original)
	case "longrope":
		out.longRope(r, o)
	default:
		r.fail("rope_type %q is not supported; supported are default, linear, dynamic, llama3, yarn, longrope", kind)
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

// longRope divides each pair's frequency by its own factor, of which there are two
// lists: one up to the original length and one beyond (Ding et al. 2024, arXiv:2402.13753).
func (o *rope) longRope(r *fields, options ropeOptions) {
	factors := func(name string) []float32 {
		freqs := inverseFrequencies(options.theta, options.dims)
		list := r.numbers(name, len(freqs))
		for i := range list {
			exponent := float32(2*i) / float32(options.dims)
			freqs[i] = 1 / (float32(list[i]) * float32(math.Pow(options.theta, float64(exponent))))
		}
		return freqs
	}
	o.invFreq, o.long, o.longAfter = factors("short_factor"), factors("long_factor"), options.original
	factor := r.numberOr("factor", float64(options.maxPositions)/float64(options.original))
	suggested := 1.0
	if factor > 1 && options.original < 2 {
		r.fail("rope_type longrope needs an original_max_position_embeddings above 1, got %d", options.original)
	} else if factor > 1 {
		suggested = math.Sqrt(1 + math.Log(factor)/math.Log(float64(options.original)))
	}
	o.attentionFactor = r.numberOr("attention_factor", suggested)
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
// of each pair, [batch or 1, length, 1, pairs]. Where broadcasts are dear (the
// Go backend) they are given each head and half once: [batch, length, heads, 2·pairs].
// Features of a head beyond 2·pairs are only multiplied by scale.
type rotation struct {
	cos, sin *Node
	full     bool
	pairs    int
	scale    float64
}

// tables computes the rotation of each position, [batch or 1, length] int32, for
// queries or keys of shape [batch, length, heads, headDim]. What it turns it also
// multiplies by scale.
func (o *rope) tables(positions *Node, batch, heads int, scale float64) rotation {
	length, pairs := positions.Shape().Dimensions[1], len(o.invFreq)
	angles := ConvertDType(Reshape(positions, -1, length, 1, 1), dtypes.Float32)
	angles = Mul(angles, Reshape(o.frequencies(positions), 1, 1, 1, pairs))
	t := rotation{cos: Cos(angles), sin: Sin(angles), pairs: pairs, scale: scale}
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

// longOnly returns the embedding of long passes for all.
func (o *rope) longOnly() *rope {
	if o.long == nil {
		return o
	}
	out := *o
	out.invFreq, out.long = o.long, nil
	return &out
}

// frequencies returns the inverse frequencies for a pass, [pairs] float32. Those that
// depend on the length go by the largest position of this pass alone: unlike
// transformers' module, a graph remembers no earlier, longer pass.
func (o *rope) frequencies(positions *Node) *Node {
	g := positions.Graph()
	switch {
	case o.dynamic != nil:
		return o.dynamic.frequencies(positions, len(o.invFreq))
	case o.long != nil:
		isLong := GreaterOrEqual(ReduceAllMax(positions), Scalar(g, dtypes.Int32, o.longAfter))
		return Where(isLong, Const(g, o.long), Const(g, o.invFreq))
	}
	return Const(g, o.invFreq)
}

func (d *dynamicNTK) frequencies(positions *Node, pairs int) *Node {
	g, dim := positions.Graph(), 2*pairs
	length := ConvertDType(AddScalar(ReduceAllMax(positions), 1), dtypes.Float32)
	length = MaxScalar(length, float64(d.maxPositions))
	grown := AddScalar(MulScalar(length, d.factor/float64(d.maxPositions)), 1-d.factor)
	logBase := AddScalar(MulScalar(Log(grown), float64(dim)/float64(dim-2)), math.Log(d.base))
	exponents := MulScalar(Iota(g, shapes.Make(dtypes.Float32, pairs), 0), -2/float64(dim))
	return Exp(Mul(exponents, BroadcastToDims(logBase, pairs)))
}

// rotate turns the pairs of x, [batch, length, heads, headDim], in float32 and
// returns x's dtype.
func (t rotation) rotate(x *Node) *Node {
	wide := ConvertDType(x, dtypes.Float32)
	if rotated := 2 * t.pairs; rotated < x.Shape().Dimensions[3] {
		rest := SliceAxis(wide, 3, AxisRange(rotated))
		if t.scale != 1 {
			rest = MulScalar(rest, t.scale)
		}
		turned := t.turn(SliceAxis(wide, 3, AxisRange(0, rotated)))
		return ConvertDType(Concatenate([]*Node{turned, rest}, 3), x.DType())
	}
	return ConvertDType(t.turn(wide), x.DType())
}

// turn rotates x, [batch, length, heads, 2·pairs] float32.
func (t rotation) turn(x *Node) *Node {
	first := SliceAxis(x, 3, AxisRange(0, t.pairs))
	second := SliceAxis(x, 3, AxisRange(t.pairs))
	if t.full {
		return Add(Mul(x, t.cos), Mul(Concatenate([]*Node{second, first}, 3), t.sin))
	}
	return Concatenate([]*Node{
		Sub(Mul(first, t.cos), Mul(second, t.sin)),
		Add(Mul(second, t.cos), Mul(first, t.sin)),
	}, 3)
}
