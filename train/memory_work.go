package train

import (
	"slices"
	"strings"

	"github.com/gomlx/compute/dtypes"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// work is a base and what is trained of it, as far as a [MemoryPlan] depends on it.
type work struct {
	base     plannedBase
	adapters []*peft.Plan
	// virtual is the number of virtual tokens of all active adapters.
	virtual int
	// adapted are the trainable values at a module, by its path.
	adapted map[string]int
	// sublayer are those at an attention or feed-forward sublayer.
	sublayer map[string]int
	// dropped are the modules whose adapters keep an input after dropout, by path.
	dropped map[string]bool
	// replaced are parameters of the base that trained copies stand for, by name.
	replaced map[string]bool
	// quantised are the parameters that are dequantised for their products.
	quantised map[string]bool
	// element is the size of a value in the dtype that products are computed in.
	element int64
	// fused is true where attention keeps no scores, recomputes where norms and activation
	// functions are computed again for the linears behind them.
	fused, recomputes bool
	cache             site.CacheShape
}

func newWork(b plannedBase, adapters []*peft.Plan) *work {
	w := &work{
		base: b, adapters: adapters, adapted: map[string]int{}, sublayer: map[string]int{},
		dropped: map[string]bool{}, replaced: map[string]bool{}, quantised: map[string]bool{},
		element: int64(b.DType().Size()), cache: b.CacheShape(),
	}
	sizes := map[string]int{}
	for _, p := range b.Parameters() {
		sizes[p.Name] = p.Size()
		if _, statistics := w.parameterBytes(p); statistics > 0 {
			w.quantised[p.Name] = true
		}
	}
	for _, a := range adapters {
		w.virtual += a.VirtualTokens
		for _, t := range a.Targets {
			if kind := t.Module.Kind; kind == site.Attention || kind == site.FeedForward {
				if t.Parameters > 0 { // virtual tokens have theirs elsewhere
					w.sublayer[t.Module.Path] += t.Parameters
				}
				continue
			}
			w.adapted[t.Module.Path] += t.Parameters
			w.dropped[t.Module.Path] = w.dropped[t.Module.Path] || t.DropsInput
			if own := sizes[t.Module.Weight()]; len(t.Settings) == 0 && own > 0 && t.Parameters >= own {
				w.replaced[t.Module.Weight()], w.replaced[t.Module.BiasName()] = true, t.Module.Bias
			}
		}
	}
	half := b.DType() == dtypes.BFloat16 || b.DType() == dtypes.Float16
	w.recomputes = b.Backend() == nil || backend.IsCUDA(b.Backend())
	w.fused = half && w.cache.HeadDim%8 == 0 && w.recomputes
	return w
}

func (w *work) parameterBytes(p site.Parameter) (values, statistics int64) {
	if h, ok := w.base.(held); ok {
		return h.ParameterBytes(p)
	}
	return int64(p.Size()) * int64(w.base.DType().Size()), 0
}

const floatBytes = 4

// parameters plans what does not depend on the batch.
func (w *work) parameters(p *MemoryPlan) {
	var size int64
	for _, parameter := range w.base.Parameters() {
		n := int64(parameter.Size())
		size += n
		values, statistics := w.parameterBytes(parameter)
		if !w.replaced[parameter.Name] {
			p.Weights += values
			p.Statistics += statistics
			continue
		}
		p.Idle += values + statistics
		if w.element != floatBytes {
			p.Converted += n * w.element
		}
		if peft.IsLarge(int(n)) {
			p.hosted += 3 * n * floatBytes
			p.largest = max(p.largest, n*floatBytes)
		}
	}
	for _, a := range w.adapters {
		p.Adapters += a.Count.Trainable * floatBytes
		p.Moments += 2 * a.Count.Trainable * floatBytes
	}
}

// activations plans what depends on the batch.
func (w *work) activations(p *MemoryPlan) {
	length := int64(p.Length + w.virtual)
	tokens := int64(p.Batch) * length
	hidden := int64(w.base.Head().In)
	var kept, inside, backward int64
	for _, b := range w.blocks() {
		n := b.kept(w, hidden, length, w.recomputes && !p.GradientCheckpointing) + w.sublayers(b.layer, hidden)
		if p.GradientCheckpointing {
			kept += hidden * w.element
			inside = max(inside, n-hidden*w.element)
		} else {
			kept += n
		}
		backward = max(backward, b.backward(hidden)*w.element)
		p.Dequantised = max(p.Dequantised, b.dequantised(w))
	}
	kept += 2 * hidden * w.element // the input of the last norm and its output
	p.Activations = tokens * kept
	p.Backward = tokens * (inside + backward)
	chunks := CausalLM{ChunkTokens: p.ChunkTokens}.chunks(w.base.VocabSize(), p.Batch*p.Length)
	p.Logits = 2 * int64(chunks[0][1]-chunks[0][0]) * int64(w.base.VocabSize()) * w.element
}

// sublayers is the number of bytes a token that adapters of a layer's sublayers keep: what the
// sublayer gives, and what the adapter makes of it at its narrowest.
func (w *work) sublayers(layer string, hidden int64) int64 {
	var n int64
	for path, parameters := range w.sublayer {
		if layerOf(path) == layer {
			n += hidden + int64(parameters)/(2*hidden)
		}
	}
	return n * w.element
}

// plannedBlock is one layer of a transformer by the modules it has.
type plannedBlock struct {
	layer string
	norms []site.Module
	// attention ends with the projection of what attention gives; forward is the rest,
	// whose last one leads back to the residual stream.
	attention, forward []site.Module
}

// blocks groups the modules by the number in their paths.
func (w *work) blocks() []*plannedBlock {
	var out []*plannedBlock
	index := map[string]*plannedBlock{}
	for _, m := range w.base.Modules() {
		layer := layerOf(m.Path)
		if layer == "" || m.Head {
			continue
		}
		b := index[layer]
		if b == nil {
			b = &plannedBlock{layer: layer}
			index[layer] = b
			out = append(out, b)
		}
		switch {
		case m.Kind == site.Norm:
			b.norms = append(b.norms, m)
		case m.Kind == site.Linear && strings.Contains(m.Path[len(layer):], "att"):
			b.attention = append(b.attention, m)
		case m.Kind == site.Linear:
			b.forward = append(b.forward, m)
		}
	}
	return out
}

// layerOf is a path up to its first number: "model.layers.3"; "" without one.
func layerOf(path string) string {
	end := 0
	for part := range strings.SplitSeq(path, ".") {
		end += len(part)
		if part != "" && strings.Trim(part, "0123456789") == "" {
			return path[:end]
		}
		end++
	}
	return ""
}

func last(modules []site.Module) (m site.Module, others []site.Module) {
	if n := len(modules); n > 0 {
		return modules[n-1], modules[:n-1]
	}
	return m, nil
}

// kept is the number of bytes a token that a block's gradients need. recomputes says whether
// the inputs of linears behind a norm or an activation function are made again.
func (b *plannedBlock) kept(w *work, hidden, length int64, recomputes bool) int64 {
	var n int64
	out, projections := last(b.attention)
	queries, keys := int64(out.In), int64(w.cache.KVHeads*w.cache.HeadDim)
	for _, m := range b.norms { // a norm is computed again from its input
		switch {
		case strings.HasSuffix(m.Path, "q_norm"):
			n += queries
		case strings.HasSuffix(m.Path, "k_norm"):
			n += keys
		default:
			n += hidden
		}
	}
	n += 2*queries + 2*keys // queries, keys, values, and what attention gives
	down, inner := last(b.forward)
	for _, m := range inner {
		n += int64(m.Out) // the activation function is computed again from these
	}
	for _, group := range [][]site.Module{projections, inner, {down}} {
		if !recomputes && slices.ContainsFunc(group, w.needsInput) {
			n += int64(group[0].In)
		}
	}
	for _, m := range append(slices.Clone(b.attention), b.forward...) {
		if recomputes && m.Path != out.Path {
			continue // with its input
		}
		if parameters := w.adapted[m.Path]; parameters > 0 && !w.replaced[m.Weight()] {
			n += int64(parameters / (m.In + m.Out)) // x·Aᵀ: as many as the rank
			if w.dropped[m.Path] {
				n += int64(m.In) // each module has a mask of its own
			}
		}
	}
	return n*w.element + b.scores(w, queries, length)
}

// needsInput reports whether the gradients need a linear's input: those of an adapter
// without dropout do.
func (w *work) needsInput(m site.Module) bool {
	return w.adapted[m.Path] > 0 && !w.dropped[m.Path]
}

// scores are kept for each head: one sum in float32 where attention is fused, else the
// weights of all tokens, with a copy in the dtype of products.
func (b *plannedBlock) scores(w *work, queries, length int64) int64 {
	if w.cache.HeadDim == 0 {
		return 0
	}
	heads := queries / int64(w.cache.HeadDim)
	switch {
	case w.fused:
		return heads * floatBytes
	case w.element == floatBytes:
		return heads * length * floatBytes
	}
	return heads * length * (floatBytes + w.element)
}

// backward is the number of values a token that the gradients of a block take at their
// peak: of its output and input, and of the widest products.
func (b *plannedBlock) backward(hidden int64) int64 {
	_, inner := last(b.forward)
	_, projections := last(b.attention)
	var wide, heads int64
	for _, m := range inner {
		wide += int64(m.Out)
	}
	for _, m := range projections {
		heads += int64(m.Out)
	}
	return 2*hidden + max(wide, heads)
}

// dequantised is the largest sum of quantised weights that are multiplied with one input:
// each is tied to that input, and nothing orders them further.
func (b *plannedBlock) dequantised(w *work) int64 {
	var largest int64
	out, projections := last(b.attention)
	down, inner := last(b.forward)
	for _, group := range [][]site.Module{projections, {out}, inner, {down}} {
		var n int64
		for _, m := range group {
			if w.quantised[m.Weight()] {
				n += int64(m.In) * int64(m.Out) * w.element
			}
		}
		largest = max(largest, n)
	}
	return largest
}
