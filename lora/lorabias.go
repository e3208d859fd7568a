package lora

import (
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// lora_bias gives B a bias c: the update is s·(B A x + c). Merged it goes into the base's
// own bias: b' = b + s·c.

const biasB = "lora_B.bias" // [out]

// biasParam is c, which starts at zero, with InitRandom as PyTorch initialises a bias.
func (l layer) biasParam(init Init) peft.Param {
	p := peft.Param{Name: l.Path + "." + biasB, Shape: []int{l.Out}, NoDecay: true, Group: peft.GroupB}
	if init == InitRandom {
		_, shapeB := l.shapes()
		p.Init = uniform(fanIn(shapeB))
	}
	return p
}

// scaledBias is s·c.
func (a *adapter) scaledBias(u *peft.Use) *graph.Node { return a.scale(u, u.Cast(biasB)) }

// addBias adds one value a channel to an output of the module.
func (l layer) addBias(y, bias *graph.Node) *graph.Node {
	return graph.Add(y, l.perChannel(y, bias))
}

// perChannel reshapes one value for each output feature so that it broadcasts to y.
func (l layer) perChannel(y, values *graph.Node) *graph.Node {
	if l.Kind == site.Convolution && !l.Conv.ChannelsLast {
		shape := make([]int, y.Rank())
		for i := range shape {
			shape[i] = 1
		}
		shape[1] = l.Out
		return graph.Reshape(values, shape...)
	}
	return graph.ExpandLeftToRank(graph.Reshape(values, l.Out), y.Rank())
}

func (l layer) mergeBias(values []float32, value func(name string) []float32) error {
	for i, v := range value(l.Path + "." + biasB) {
		values[i] += float32(l.scaling * float64(v))
	}
	return nil
}
