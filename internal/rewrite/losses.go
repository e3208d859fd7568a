package rewrite

import (
	"errors"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/ml/train"
)

// checkLosses refuses losses that the model gave to GoMLX's trainer, if they depend on
// what the hook changed: nobody would minimise them.
func (r *rewriter) checkLosses() {
	g := r.pass.Graph
	for _, loss := range []*graph.Node{train.GetMainLoss(g), train.GetRegularizationLoss(g)} {
		if loss != nil && r.dependsOnChange(loss, map[*graph.Node]bool{}) {
			panic(errors.New("the model adds a loss of its own (train.AddLoss) that depends on what the adapter changes: make it an output, and add it in the loss of the training"))
		}
	}
}
