package models

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// Blocks is one pass of one model: what a family's forward function builds with.
// Each module is a [site.Site] that the pass's hook may change. Parameters,
// weights too, are read through [site.Pass.Parameter], so that a hook can train
// any of them; what the hook leaves alone is cut off from gradients.
type Blocks struct {
	*site.Pass
	model *core
	// inner are the results of [Blocks.recomputed] from within their regions.
	inner map[*Node]*Node
}

func newBlocks(p *site.Pass, c *core) *Blocks {
	if p.DType == dtypes.InvalidDType {
		panic(fmt.Errorf("models: the pass has no dtype; %s computes in %s", c.config.ModelType, c.dtype))
	}
	return &Blocks{Pass: p, model: c, inner: map[*Node]*Node{}}
}

// Weight returns the value of the named parameter in the pass's dtype.
func (b *Blocks) Weight(name string) *Node {
	value := b.Parameter(name, func() *Node { return b.frozen(name) })
	return ConvertDType(value, b.DType)
}

// frozen returns the base's own value of a parameter, cut off from gradients.
func (b *Blocks) frozen(name string) *Node {
	if q, ok := b.model.quantised[name]; ok {
		return b.dequantised(name, q, nil)
	}
	v := b.model.store.GetVariable(site.VariablePath(name))
	if v == nil {
		panic(fmt.Errorf("models: %s has no parameter %q", b.model.config.ModelType, name))
	}
	value := v.NodeValue(b.Graph)
	if value.Type() == NodeTypeParameter && value.DType() == b.DType {
		// An input of the program gets no gradient unless someone asks for it, while
		// StopGradient would copy every weight in every run on the Go backend.
		return value
	}
	return StopGradient(ConvertDType(value, b.DType))
}

// apply asks the hook for the output of the module at path on x.
func (b *Blocks) apply(path string, x *Node, base func(m site.Module, x *Node) *Node, with func(m site.Module, x, weight *Node) *Node) *Node {
	m, ok := b.model.modules[path]
	if !ok {
		panic(fmt.Errorf("models: %s has no module %q", b.model.config.ModelType, path))
	}
	s := &site.Site{
		Module:       m,
		X:            x,
		Base:         func(x *Node) *Node { return base(m, x) },
		FrozenWeight: func() *Node { return b.frozen(m.Weight()) },
		BiasValue:    func() *Node { return b.Weight(m.BiasName()) },
	}
	if with != nil {
		s.With = func(x, weight *Node) *Node { return with(m, x, weight) }
	}
	return b.Apply(s)
}

// Linear is x·Wᵀ + bias: x [..., in] -> [..., out].
func (b *Blocks) Linear(path string, x *Node) *Node {
	if inner, ok := b.inner[x]; ok { // computed again in the backward pass, not kept
		return b.applyLinear(path, inner).StopCheckpoint()
	}
	return b.applyLinear(path, x)
}

func (b *Blocks) applyLinear(path string, x *Node) *Node {
	return b.apply(path, x, func(m site.Module, x *Node) *Node {
		var y *Node
		if q, ok := b.model.quantised[m.Weight()]; ok {
			y = b.quantisedProduct(m, q, x)
		} else {
			y = linear(m, x, b.Weight(m.Weight()))
		}
		if m.Bias {
			bias := b.Weight(m.BiasName())
			y = Add(y, ExpandLeftToRank(bias, y.Rank()))
		}
		return y
	}, linear)
}

// linear is x·Wᵀ, or x·W for a weight that is stored [in, out].
func linear(m site.Module, x, weight *Node) *Node {
	if m.Transposed {
		return graphx.MatMul(x, weight)
	}
	return graphx.MatMulT(x, weight)
}

// Embedding looks up rows: ids [batch, length] int32 -> [batch, length, features].
func (b *Blocks) Embedding(path string, ids *Node) *Node {
	return b.apply(path, ids, func(m site.Module, ids *Node) *Node {
		return rows(m, ids, b.Weight(m.Weight()))
	}, rows)
}

func rows(_ site.Module, ids, weight *Node) *Node { return Gather(weight, InsertAxes(ids, -1)) }

// RMSNorm is x/√(mean(x²)+eps) over the last axis in float32, rounded to x's
// dtype and then scaled, in this order as in Hugging Face's Llama
// (Zhang and Sennrich 2019, arXiv:1910.07467).
func (b *Blocks) RMSNorm(path string, x *Node, eps float64) *Node {
	return b.recomputed([]*Node{x}, func(in []*Node) *Node {
		return b.apply(path, in[0], func(m site.Module, x *Node) *Node {
			return rmsNorm(x, b.Weight(m.Weight()), m.In, eps)
		}, nil)
	})
}

func rmsNorm(x, scale *Node, features int, eps float64) *Node {
	if x.DType() == dtypes.Float32 {
		// Sum and broadcast as matrix products: twice as fast on the Go backend, the same on XLA.
		ones := Ones(x.Graph(), shapes.Make(dtypes.Float32, features, 1))
		mean := MulScalar(graphx.MatMul(Square(x), ones), 1/float64(features))
		inverse := Reciprocal(Sqrt(AddScalar(mean, eps))) // Rsqrt has no gradient in GoMLX
		return Mul(x, graphx.MatMul(inverse, Reshape(scale, 1, features)))
	}
	wide := ConvertDType(x, dtypes.Float32)
	mean := MulScalar(ReduceAndKeep(Square(wide), ReduceSum, -1), 1/float64(features))
	normed := Mul(wide, Reciprocal(Sqrt(AddScalar(mean, eps))))
	return Mul(ConvertDType(normed, x.DType()), ExpandLeftToRank(scale, x.Rank()))
}

// LayerNorm is (x-mean(x))/√(var(x)+eps)·scale + offset over the last axis, computed in
// float32 and rounded to x's dtype at the end (Ba et al. 2016, arXiv:1607.06450).
func (b *Blocks) LayerNorm(path string, x *Node, eps float64) *Node {
	return b.recomputed([]*Node{x}, func(in []*Node) *Node {
		return b.apply(path, in[0], func(m site.Module, x *Node) *Node {
			y := layerNorm(x, b.Weight(m.Weight()), m.In, eps)
			if m.Bias {
				bias := ConvertDType(b.Weight(m.BiasName()), dtypes.Float32)
				y = Add(y, ExpandLeftToRank(bias, y.Rank()))
			}
			return ConvertDType(y, x.DType())
		}, nil)
	})
}

// layerNorm leaves out the offset; its result is float32.
func layerNorm(x, scale *Node, features int, eps float64) *Node {
	wide := ConvertDType(x, dtypes.Float32)
	centred := Sub(wide, meanOfLast(x, wide, features))
	inverse := Reciprocal(Sqrt(AddScalar(meanOfLast(x, Square(centred), features), eps))) // Rsqrt has no gradient in GoMLX
	return Mul(Mul(centred, inverse), ExpandLeftToRank(ConvertDType(scale, dtypes.Float32), x.Rank()))
}

// meanOfLast is the mean of wide over its last axis, kept.
func meanOfLast(x, wide *Node, features int) *Node {
	if x.DType() == dtypes.Float32 {
		// A sum as a matrix product: twice as fast on the Go backend, the same on XLA.
		wide = graphx.MatMul(wide, Ones(x.Graph(), shapes.Make(dtypes.Float32, features, 1)))
	} else {
		wide = ReduceAndKeep(wide, ReduceSum, -1)
	}
	return MulScalar(wide, 1/float64(features))
}

// gated is act(gate)·up, the first half of a gated feed-forward block
// (Shazeer 2020, arXiv:2002.05202).
func (b *Blocks) gated(act activation, gate, up *Node) *Node {
	return b.recomputed([]*Node{gate, up}, func(in []*Node) *Node {
		return Mul(act(in[0]), in[1])
	})
}

// recomputed builds f so that the backward pass computes it again from its inputs
// instead of keeping what lies in between, where that pays: cheap elementwise work
// on an accelerator in training. Linears that take the result belong to the region, so
// that an adapter's gradient computes its input again, too. Inside a checkpointed block
// there must be no regions, since the end of an inner one would end the block's own.
//
// The barrier keeps XLA from computing the last step of f once for each product that
// takes it: it fuses them, and undoes it where the product turns out faster alone.
func (b *Blocks) recomputed(in []*Node, f func(in []*Node) *Node) *Node {
	if !b.model.recompute || !b.Training() {
		return f(in)
	}
	if b.Checkpoint {
		return OptimizationBarrier(f(in))
	}
	marked := make([]*Node, len(in))
	for i, x := range in {
		marked[i] = x.Checkpoint()
	}
	inner := OptimizationBarrier(f(marked))
	out := inner.StopCheckpoint()
	b.inner[out] = inner
	return out
}

// parametersOf lists the parameters of modules, tied ones once.
func parametersOf(modules []site.Module) []site.Parameter {
	var out []site.Parameter
	for _, m := range modules {
		if m.TiedTo == "" {
			out = append(out, site.Parameter{Name: m.Weight(), Shape: m.StoredShape()})
		}
		if m.Bias {
			out = append(out, site.Parameter{Name: m.BiasName(), Shape: []int{m.Out}})
		}
	}
	return out
}
