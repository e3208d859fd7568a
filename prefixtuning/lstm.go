package prefixtuning

import (
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/site"
)

// directions are the suffixes of PyTorch's names for the two directions of an LSTM.
var directions = []string{"", "_reverse"}

// lstmLayer is one layer of PyTorch's bidirectional LSTM on one sequence, [steps, in] ->
// [steps, 2·hidden]: with i, f, g, o the four parts of W_ih x_t + b_ih + W_hh h_(t-1) + b_hh,
//
//	c_t = σ(f) c_(t-1) + σ(i) tanh(g),  h_t = σ(o) tanh(c_t),  h_0 = c_0 = 0.
//
// Both directions run as a batch of two.
func lstmLayer(value func(name, direction string) *graph.Node, x *graph.Node) *graph.Node {
	both := func(name string) *graph.Node {
		return graph.Stack([]*graph.Node{value(name, directions[0]), value(name, directions[1])}, 0)
	}
	at := func(x *graph.Node, step, direction int) *graph.Node {
		return graph.Slice(x, graph.AxisElem(step), graph.AxisElem(direction))
	}
	gates := graphx.Dot(x, []int{1}, nil, both("weight_ih"), []int{2}, nil) // [steps, 2, 4·hidden]
	gates = graph.Add(gates, graph.InsertAxes(graph.Add(both("bias_ih"), both("bias_hh")), 0))
	recurrent := both("weight_hh")
	steps, hidden := x.Shape().Dim(0), recurrent.Shape().Dim(2)
	var h, c *graph.Node // [2, hidden]
	forward, backward := make([]*graph.Node, steps), make([]*graph.Node, steps)
	for t := range steps {
		last := steps - 1 - t
		gate := graph.Reshape(graph.Concatenate([]*graph.Node{at(gates, t, 0), at(gates, last, 1)}, 1), 2, 4*hidden)
		if h != nil {
			gate = graph.Add(gate, graphx.Dot(h, []int{1}, []int{0}, recurrent, []int{2}, []int{0}))
		}
		part := func(i int) *graph.Node { return graph.SliceAxis(gate, 1, graph.AxisRange(i*hidden, (i+1)*hidden)) }
		next := graph.Mul(graph.Sigmoid(part(0)), graph.Tanh(part(2)))
		if c != nil {
			next = graph.Add(next, graph.Mul(graph.Sigmoid(part(1)), c))
		}
		c = next
		h = graph.Mul(graph.Sigmoid(part(3)), graph.Tanh(c))
		forward[t], backward[last] = graph.SliceAxis(h, 0, graph.AxisElem(0)), graph.SliceAxis(h, 0, graph.AxisElem(1))
	}
	return graph.Concatenate([]*graph.Node{graph.Concatenate(forward, 0), graph.Concatenate(backward, 0)}, 1)
}

// dropout is that of the pass, for what is the same for all rows of a batch: splitting the
// batch must not change it.
func dropout(p *site.Pass, key string, x *graph.Node, rate float64) *graph.Node {
	if p == nil || p.Random == nil {
		return x
	}
	whole, random := *p, *p.Random
	random.RowOffset = graph.ZerosLike(random.RowOffset)
	whole.Random = &random
	return whole.Dropout(key, x, rate)
}
