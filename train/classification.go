package train

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Classification is the cross entropy of a [site.Classifier]'s labels, of rows or of
// tokens, in float32. It is the loss of a classifier unless another is given.
type Classification struct{}

// Counted is implemented by a [Loss] whose targets are either hit or missed: an
// evaluation then has an accuracy.
type Counted interface {
	Loss
	// LossAndHits builds the loss and the number of targets for which the model gives
	// what is wanted the highest score, a float32 scalar.
	LossAndHits(r *Run, b BatchNodes) (sum, count, hits *graph.Node)
}

// Loss implements [Loss].
func (c Classification) Loss(r *Run, b BatchNodes) (sum, count *graph.Node) {
	sum, count, _ = c.LossAndHits(r, b)
	return sum, count
}

// LossAndHits implements [Counted].
func (Classification) LossAndHits(r *Run, b BatchNodes) (sum, count, hits *graph.Node) {
	if r.Classifier == nil {
		panic(errors.New("train: the classification loss needs a classifier"))
	}
	scores := graph.ConvertDType(r.Classifier.Classify(r.Pass, b.Tokens), dtypes.Float32)
	scores = graph.Reshape(scores, -1, scores.Shape().Dim(-1))
	targets := graph.Reshape(b.Targets, -1)
	counted := graph.NotEqual(targets, ignore(targets))

	highest := graph.StopGradient(graph.ReduceAndKeep(scores, graph.ReduceMax, -1))
	shifted := graph.Sub(scores, highest)
	logSum := graph.Log(graph.ReduceSum(graph.Exp(shifted), -1))
	classes := graph.Iota(scores.Graph(), shapes.Make(dtypes.Int32, scores.Shape().Dimensions...), 1)
	isTarget := graph.Equal(classes, graph.BroadcastToShape(graph.ExpandAxes(targets, -1), classes.Shape()))
	losses := graph.Sub(logSum, graph.ReduceSum(graph.Where(isTarget, shifted, graph.ZerosLike(shifted)), -1))
	sum = graph.ReduceAllSum(graph.Where(counted, losses, graph.ZerosLike(losses)))

	hit := graph.LogicalAnd(counted, graph.Equal(graph.ArgMax(scores, -1), targets))
	return sum, number(counted), number(hit)
}

// number counts what is true, as float32.
func number(x *graph.Node) *graph.Node {
	return graph.ReduceAllSum(graph.ConvertDType(x, dtypes.Float32))
}

// tokenBase is what training asks of a base besides its outputs.
type tokenBase interface {
	site.Base
	VocabSize() int
	MaxPositions() int
}

// checkBase refuses bases that training cannot use.
func checkBase(base site.Base) error {
	_, tokens := base.(tokenBase)
	_, lm := base.(site.LanguageModel)
	_, classifier := base.(site.Classifier)
	_, function := base.(site.Function)
	if !function && !(tokens && (lm || classifier)) {
		return errors.New("train: the base is neither a language model nor a classifier nor a plain function")
	}
	return nil
}

// defaultLoss is the loss of a base where none is given; a plain function has none.
func defaultLoss(base site.Base) Loss {
	if _, ok := base.(site.Function); ok {
		return nil
	}
	if _, ok := base.(site.Classifier); ok {
		return Classification{}
	}
	return CausalLM{}
}

// checkTask refuses data whose labels the base has no scores for, and losses that do
// not fit it.
func (t *Trainer) checkTask(d *Dataset) error {
	if d == nil {
		return nil
	}
	if _, function := t.pm.Base().(site.Function); function || d.arrays != nil {
		return t.checkArrays(d)
	}
	c, ok := t.pm.Base().(site.Classifier)
	if !ok {
		if d.Kind() != LabelNextToken {
			return fmt.Errorf("its labels are of a %s, but the base is a language model and no classifier", d.Kind())
		}
		return nil
	}
	want := LabelRow
	if c.PerToken() {
		want = LabelToken
	}
	if d.Kind() != want {
		return fmt.Errorf("its labels are of a %s, but the base is a classifier of a %s", d.Kind(), want)
	}
	if n := len(d.Classes()); n > c.NumLabels() {
		return fmt.Errorf("it has %d classes, but the base has %d labels", n, c.NumLabels())
	}
	named, ok := c.(interface{ Labels() []string })
	if !ok || len(d.Classes()) == 0 {
		return nil
	}
	labels := named.Labels()
	for i, name := range d.Classes() {
		if !slices.Contains(labels, name) {
			return fmt.Errorf("its class %d is %q, which is no label of the base", i, name)
		}
		if labels[i] != name {
			return fmt.Errorf("its class %d is %q, but label %d of the base is %q", i, name, i, labels[i])
		}
	}
	return nil
}

// checkLoss refuses next-token losses on a base that sees the next token.
func checkLoss(base site.Base, loss Loss) error {
	_, classifier := base.(site.Classifier)
	if loss == nil {
		return errors.New("train: the base is a plain function: Arguments.Loss must say what is learned, MeanSquaredError, CrossEntropy or a LossFunc")
	}
	switch loss.(type) {
	case LossFunc, MeanSquaredError, CrossEntropy:
		if _, ok := base.(site.Function); !ok {
			return fmt.Errorf("train: loss %T needs a base that is a plain function, see peft.WrapModel", loss)
		}
	case CausalLM:
		if task, ok := base.(site.Tasked); ok && task.TaskType() != "CAUSAL_LM" {
			return fmt.Errorf("train: loss %T needs a causal language model, and the base %s is none", loss, base.ModelType())
		}
	case Classification:
		if !classifier {
			return fmt.Errorf("train: loss %T needs a classifier, and the base %s is none", loss, base.ModelType())
		}
	}
	return nil
}
