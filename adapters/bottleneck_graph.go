package adapters

import (
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// activation is an elementwise function.
type activation = func(x *graph.Node) *graph.Node

// normEpsilon is that of PyTorch's LayerNorm.
const normEpsilon = 1e-5

// sublayerBottleneck stands at the sublayers of blocks.
type sublayerBottleneck struct{ *bottleneck }

// linearBottleneck stands at the outputs of linear layers.
type linearBottleneck struct{ *bottleneck }

var (
	_ peft.SublayerAdapter = (*sublayerBottleneck)(nil)
	_ peft.Describer       = (*sublayerBottleneck)(nil)
	_ peft.Configured      = (*sublayerBottleneck)(nil)
	_ peft.OutputAdapter   = (*linearBottleneck)(nil)
	_ peft.Describer       = (*linearBottleneck)(nil)
	_ peft.Configured      = (*linearBottleneck)(nil)
)

// module is one module's adapter in a graph.
type module struct {
	*bottleneck
	pass *site.Pass
	path string
	// value returns the module's tensor of a name, float32.
	value func(name string) *graph.Node
}

// Output implements [peft.OutputAdapter]: y + f(y).
func (a *linearBottleneck) Output(u *peft.Use, y *graph.Node) *graph.Node {
	return module{a.bottleneck, u.Pass, u.Site.Path, u.Value}.sequential(y, y)
}

// SublayerOutput implements [peft.SublayerAdapter]: pre_forward and forward of AdapterHub's
// Adapter and ParallelAdapter (adapters/methods/modeling.py). A parallel adapter's result is
// added to y here, where AdapterHub does it afterwards: of several parallel adapters that are
// active together each one counts, not just the last.
func (a *sublayerBottleneck) SublayerOutput(u *peft.SublayerUse, y *graph.Node) *graph.Node {
	m := module{a.bottleneck, u.Pass, u.Sublayer.Path, u.Value}
	y, other := a.stream(u, y)
	if a.config.IsParallel {
		return graph.Add(y, m.normed(normAfter, a.config.LnAfter, m.transform(other)))
	}
	x, residual := y, y
	if a.config.OriginalLnBefore {
		x = graph.Add(x, other)
		if a.config.ResidualBeforeLn == ResidualPostAdd {
			residual = x
		}
		if u.Sublayer.Norm != nil {
			x = u.Sublayer.Norm(x)
		}
	}
	if a.config.ResidualBeforeLn == ResidualAfterNorm {
		residual = x
	}
	return m.sequential(x, residual)
}

// SublayerJoin implements [peft.SublayerAdapter].
func (a *sublayerBottleneck) SublayerJoin(u *peft.SublayerUse, y *graph.Node) *graph.Node {
	if a.config.OriginalLnAfter == peft.Off {
		return y
	}
	if !a.swapped[u.Sublayer.Path] {
		return u.Sublayer.Join(y)
	}
	y = graph.Add(y, u.Sublayer.Output)
	if u.Sublayer.Norm != nil {
		y = u.Sublayer.Norm(y)
	}
	return y
}

// stream returns what runs through the adapters and what is added to it by the norm.
// AdapterHub's ALBERT hands these two to its attention adapters in the other order
// (adapters/models/albert/modeling_albert.py), so that they work on the sublayer's input;
// its files mean that.
func (a *sublayerBottleneck) stream(u *peft.SublayerUse, y *graph.Node) (stream, other *graph.Node) {
	if !a.swapped[u.Sublayer.Path] {
		return y, u.Sublayer.Residual
	}
	if y == u.Sublayer.Output { // the first of those that are stacked
		y = u.Sublayer.Residual
	}
	return y, u.Sublayer.Output
}

// sequential is the adapter's result on x with the residual.
func (m module) sequential(x, residual *graph.Node) *graph.Node {
	y := m.transform(x)
	if m.config.AdapterResidualBeforeLn {
		return m.normed(normAfter, m.config.LnAfter, graph.Add(y, residual))
	}
	return graph.Add(m.normed(normAfter, m.config.LnAfter, y), residual)
}

// transform is dropout(scaling · up(f(down(norm(x))))).
func (m module) transform(x *graph.Node) *graph.Node {
	x = m.normed(normBefore, m.config.LnBefore, x)
	y := m.linear(upWeight, upBias, m.act(m.linear(downWeight, downBias, x)))
	switch m.config.Scaling.Learned {
	case "":
		if s := m.config.Scaling.factor(); s != 1 {
			y = graphx.Scale(y, s)
		}
	default:
		y = graphx.ScaleBy(y, graph.ExpandLeftToRank(m.value(scaling), y.Rank()))
	}
	return m.pass.Dropout(m.path+".adapter", y, m.config.Dropout)
}

func (m module) linear(weight, bias string, x *graph.Node) *graph.Node {
	y := graphx.MatMulT(x, m.cast(weight))
	return graph.Add(y, graph.ExpandLeftToRank(m.cast(bias), y.Rank()))
}

func (m module) cast(name string) *graph.Node {
	return graph.ConvertDType(m.value(name), m.pass.DType)
}

// normed is x normalised over its features, in float32, if there is such a norm.
func (m module) normed(name string, there bool, x *graph.Node) *graph.Node {
	if !there {
		return x
	}
	wide := graph.ConvertDType(x, dtypes.Float32)
	centred := graph.Sub(wide, graph.ReduceAndKeep(wide, graph.ReduceMean, -1))
	variance := graph.ReduceAndKeep(graph.Square(centred), graph.ReduceMean, -1)
	y := graph.Mul(centred, graph.Reciprocal(graph.Sqrt(graph.AddScalar(variance, normEpsilon))))
	y = graph.Mul(y, graph.ExpandLeftToRank(m.value(name+".weight"), y.Rank()))
	y = graph.Add(y, graph.ExpandLeftToRank(m.value(name+".bias"), y.Rank()))
	return graph.ConvertDType(y, x.DType())
}
