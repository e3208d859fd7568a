package train

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
)

// LossFunc is the [Loss] of a model that is a plain function (site.Function): it compares
// the model's outputs with the data set's targets, and returns the sum of the losses and
// their number, both float32 scalars. Like all graph building code it panics on errors.
//
// A batch may be computed in pieces, so that the loss of an example must not depend on
// others.
type LossFunc func(outputs, targets []*graph.Node) (sum, count *graph.Node)

// Loss implements [Loss].
func (f LossFunc) Loss(r *Run, b BatchNodes) (sum, count *graph.Node) {
	sum, count = f(r.outputs(b), b.Wanted)
	for _, n := range []*graph.Node{sum, count} {
		if n == nil || !n.IsScalar() {
			panic(errors.New("train: a loss function must return two scalars, the sum of the losses and their number"))
		}
	}
	return graph.ConvertDType(sum, dtypes.Float32), graph.ConvertDType(count, dtypes.Float32)
}

// outputs calls the model on the batch's inputs.
func (r *Run) outputs(b BatchNodes) []*graph.Node {
	if r.Function == nil {
		panic(errors.New("train: this loss needs a base that is a plain function, see peft.WrapModel"))
	}
	return r.Function.Call(r.Pass, b.Inputs)
}

// only returns the first output and the only target, which are what the losses below compare.
func (r *Run) only(b BatchNodes) (output, target *graph.Node) {
	if len(b.Wanted) != 1 {
		panic(fmt.Errorf("train: the loss compares the model's first output with one array of targets, and the data set has %d", len(b.Wanted)))
	}
	return graph.ConvertDType(r.outputs(b)[0], dtypes.Float32), b.Wanted[0]
}

// MeanSquaredError is the squared difference between the model's first output and
// targets of the same shape, each element of which counts as a target.
type MeanSquaredError struct{}

// Loss implements [Loss].
func (MeanSquaredError) Loss(r *Run, b BatchNodes) (sum, count *graph.Node) {
	output, target := r.only(b)
	if !slices.Equal(output.Shape().Dimensions, target.Shape().Dimensions) {
		panic(fmt.Errorf("train: mean squared error: the model's output has shape %v, the targets %v", output.Shape().Dimensions, target.Shape().Dimensions))
	}
	difference := graph.Sub(output, graph.ConvertDType(target, dtypes.Float32))
	return graph.ReduceAllSum(graph.Square(difference)), graph.Scalar(output.Graph(), dtypes.Float32, output.Shape().Size())
}

// CrossEntropy is the cross entropy of classes: the model's first output holds scores
// before softmax [..., classes], the targets int32 classes [...], of which negative ones,
// such as [IgnoreIndex], do not count. A class beyond the scores makes the loss NaN,
// which ends the training.
type CrossEntropy struct{}

// Loss implements [Loss].
func (c CrossEntropy) Loss(r *Run, b BatchNodes) (sum, count *graph.Node) {
	sum, count, _ = c.LossAndHits(r, b)
	return sum, count
}

// LossAndHits implements [Counted].
func (CrossEntropy) LossAndHits(r *Run, b BatchNodes) (sum, count, hits *graph.Node) {
	scores, target := r.only(b)
	dims := scores.Shape().Dimensions
	if scores.Rank() == 0 || !target.DType().IsInt() || !slices.Equal(dims[:len(dims)-1], target.Shape().Dimensions) {
		panic(fmt.Errorf("train: cross entropy: the model's output has shape %v, the targets %s, want int32 of the same shape but for the last axis", dims, target.Shape()))
	}
	target = graph.Reshape(target, -1)
	scores = graph.Reshape(scores, -1, dims[len(dims)-1])
	counted := graph.GreaterOrEqual(target, graph.ZerosLike(target))
	shifted := graph.Sub(scores, graph.StopGradient(graph.ReduceAndKeep(scores, graph.ReduceMax, -1)))
	logSum := graph.Log(graph.ReduceSum(graph.Exp(shifted), -1))
	classes := graph.Iota(scores.Graph(), shapes.Make(dtypes.Int32, scores.Shape().Dimensions...), 1)
	isTarget := graph.Equal(classes, graph.BroadcastToShape(graph.ExpandAxes(target, -1), classes.Shape()))
	losses := graph.Sub(logSum, graph.ReduceSum(graph.Where(isTarget, shifted, graph.ZerosLike(shifted)), -1))
	beyond := graph.GreaterOrEqual(target, graph.Scalar(target.Graph(), target.DType(), scores.Shape().Dim(-1)))
	losses = graph.Where(beyond, graph.Log(graph.Neg(graph.OnesLike(losses))), losses)
	sum = graph.ReduceAllSum(graph.Where(counted, losses, graph.ZerosLike(losses)))
	hit := graph.LogicalAnd(counted, graph.Equal(graph.ArgMax(scores, -1), target))
	return sum, number(counted), number(hit)
}
