package site

import (
	"hash/fnv"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
)

// Dropout returns x with elements zeroed at the given rate and the others scaled
// by 1/(1-rate). x is [batch, ...]. Outside training, or at rate 0, it is x.
//
// The mask is an integer hash of (seed, step, micro-step, key, row within the step,
// element within the row): no generator state, no stored mask, the same bits on every
// backend. Resuming a run changes nothing, nor does splitting a batch, see [Random].
// key names the place, usually the site's path.
func (p *Pass) Dropout(key string, x *graph.Node, rate float64) *graph.Node {
	if p.Random == nil || rate == 0 {
		return x
	}
	g, shape := x.Graph(), x.Shape()
	place := fnv.New32a()
	place.Write([]byte(key))

	k := constant(g, place.Sum32())
	for _, input := range []*graph.Node{p.Random.Seed, p.Random.Step, p.Random.MicroStep} {
		k = mix(graph.BitwiseXor(k, mix(input)))
	}
	rows := graph.Add(graph.Iota(g, shapes.Make(dtypes.Uint32, shape.Dim(0)), 0), p.Random.RowOffset)
	k = mix(graph.BitwiseXor(mix(rows), k)) // [batch]

	perRow := shape.Size() / shape.Dim(0)
	elements := graph.Iota(g, shapes.Make(dtypes.Uint32, 1, perRow), 1)
	bits := mix(graph.Add(graph.Reshape(k, shape.Dim(0), 1), graph.Mul(elements, constant(g, goldenRatio))))
	threshold := uint32(math.Min(rate*(1<<32), math.MaxUint32))
	keep := graph.Reshape(graph.GreaterOrEqual(bits, constant(g, threshold)), shape.Dimensions...)
	return graph.Where(keep, graphx.Scale(x, 1/(1-rate)), graph.ZerosLike(x))
}

// goldenRatio is 2^32 divided by the golden ratio: it spreads consecutive indices.
const goldenRatio = 0x9E3779B9

// mix is the 32-bit finaliser "lowbias32" (Chris Wellons, hash-prospector): every
// input bit flips every output bit with probability near one half.
func mix(x *graph.Node) *graph.Node {
	g := x.Graph()
	x = graph.BitwiseXor(x, graph.BitwiseShiftRightLogicalScalar(x, uint32(16)))
	x = graph.Mul(x, constant(g, 0x7feb352d))
	x = graph.BitwiseXor(x, graph.BitwiseShiftRightLogicalScalar(x, uint32(15)))
	x = graph.Mul(x, constant(g, 0x846ca68b))
	return graph.BitwiseXor(x, graph.BitwiseShiftRightLogicalScalar(x, uint32(16)))
}

func constant(g *graph.Graph, v uint32) *graph.Node { return graph.Const(g, v) }
