package train

import (
	"errors"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/site"
)

// Loss is what training minimises: the sum of a loss over the batch's targets,
// divided over the whole optimizer step by their number.
//
// The rows of a batch are independent of one another: a step is computed in several
// calls, for its micro-batches and, on the Go backend, for pieces of these. A loss that
// relates rows implements [RowGroups].
type Loss interface {
	// Loss builds the sum and the number of targets as float32 scalars. It is graph
	// building code and panics on errors.
	Loss(r *Run, b BatchNodes) (sum, count *graph.Node)
}

// RowGroups is implemented by a [Loss] that relates rows of a batch. Micro-batches are
// computed apart from one another nevertheless. The last rows of an epoch's last batch
// may be padding: no target in them counts.
type RowGroups interface {
	// RowsTogether is the number of successive rows that must not be computed apart;
	// 0: no batch is ever cut. With n > 1 a batch has a multiple of n rows, and the
	// data set's order is kept.
	RowsTogether() int
}

// BatchNodes is a [Batch] while a graph is built.
type BatchNodes struct {
	site.Tokens
	// Targets, [batch, length] int32, is the token to be predicted after each
	// position, or [IgnoreIndex]: the labels shifted by one. For a classifier it is the
	// class of each token, or, [batch], of each row.
	Targets *graph.Node
	// Inputs and Wanted are the arrays of [NewArrays], in place of all the above.
	Inputs, Wanted []*graph.Node
}

// Run is a model in a graph under construction, as a [Loss] sees it.
type Run struct {
	Base site.Base
	// Model is the base as a language model, nil if it is none.
	Model site.LanguageModel
	// Classifier is the base as a classifier, nil if it is none.
	Classifier site.Classifier
	// Function is the base as a plain function, nil if it is none.
	Function site.Function
	// Pass has the adapters in training as its hook.
	Pass *site.Pass
	// Gradient is false in evaluation: the loss need not prepare a gradient.
	Gradient bool
}

// Frozen returns the run without adapters and without dropout: the base itself,
// as a reference model.
func (r *Run) Frozen() *Run {
	return newRun(r.Base, &site.Pass{Graph: r.Pass.Graph, DType: r.Pass.DType}, false)
}

func newRun(base site.Base, pass *site.Pass, gradient bool) *Run {
	r := &Run{Base: base, Pass: pass, Gradient: gradient}
	r.Model, _ = base.(site.LanguageModel)
	r.Classifier, _ = base.(site.Classifier)
	r.Function, _ = base.(site.Function)
	return r
}

// CausalLM is the cross entropy of the next token, in float32. The logits of a
// batch never exist at once: they are built for ChunkTokens tokens at a time.
type CausalLM struct {
	// ChunkTokens is the number of tokens of a chunk; 0 chooses 32 M logits a chunk,
	// but at least 1024 tokens.
	ChunkTokens int
}

// Loss implements [Loss].
func (c CausalLM) Loss(r *Run, b BatchNodes) (sum, count *graph.Node) {
	if r.Model == nil {
		panic(errors.New("train: the causal loss needs a language model"))
	}
	hidden := r.Model.Hidden(r.Pass, b.Tokens)
	features := hidden.Shape().Dim(-1)
	x := graph.Reshape(hidden, -1, features)
	targets := graph.Reshape(b.Targets, -1)
	if r.Gradient && (r.Pass.Hook == nil || headIsFrozen(r.Pass.Hook, r.Model.Head())) {
		sum = c.frozenHead(r, x, targets)
	} else {
		sum = c.trainedHead(r, x, targets)
	}
	counted := graph.ConvertDType(graph.NotEqual(targets, ignore(targets)), dtypes.Float32)
	return sum, graph.ReduceAllSum(counted)
}

// headIsFrozen reports whether neither the head nor the weight it shares is trained.
func headIsFrozen(hook site.Hook, head site.Module) bool {
	return !hook.Adapts(head.Path) && (head.TiedTo == "" || !hook.Adapts(head.TiedTo))
}

// frozenHead computes the gradient with respect to x in the forward pass: a chunk
// yields its loss and dx at once, and the next chunk is tied to that dx, so that
// only one chunk's logits are alive and the head's product is never repeated. The
// result carries the gradient as sum((x - stop(x))·stop(dx)), whose value is zero.
func (c CausalLM) frozenHead(r *Run, x, targets *graph.Node) *graph.Node {
	var sum *graph.Node
	var gradients []*graph.Node
	constant := graph.StopGradient(x)
	for _, bounds := range c.chunks(r.Model.VocabSize(), x.Shape().Dim(0)) {
		chunk := graph.Slice(constant, graph.AxisRange(bounds[0], bounds[1]))
		if n := len(gradients); n > 0 {
			chunk = graph.SchedulingBarrier(chunk, gradients[n-1])
		}
		chunkSum := crossEntropy(r, chunk, graph.Slice(targets, graph.AxisRange(bounds[0], bounds[1])))
		gradients = append(gradients, graph.StopGradient(graph.Gradient(chunkSum, chunk)[0]))
		sum = plus(sum, graph.StopGradient(chunkSum))
	}
	dx := gradients[0]
	if len(gradients) > 1 {
		dx = graph.Concatenate(gradients, 0)
	}
	carrier := graph.Mul(graph.Sub(x, constant), dx)
	return graph.Add(sum, graph.ReduceAllSum(graph.ConvertDType(carrier, dtypes.Float32)))
}

// trainedHead recomputes each chunk's logits in the backward pass, because the
// head (or its adapter) needs a gradient too.
func (c CausalLM) trainedHead(r *Run, x, targets *graph.Node) *graph.Node {
	var sum *graph.Node
	all := c.chunks(r.Model.VocabSize(), x.Shape().Dim(0))
	for _, bounds := range all {
		chunk := graph.Slice(x, graph.AxisRange(bounds[0], bounds[1]))
		if sum != nil {
			chunk = graph.SchedulingBarrier(chunk, sum)
		}
		recompute := r.Gradient && len(all) > 1
		if recompute {
			chunk = chunk.Checkpoint()
		}
		chunkSum := crossEntropy(r, chunk, graph.Slice(targets, graph.AxisRange(bounds[0], bounds[1])))
		if recompute {
			chunkSum = chunkSum.StopCheckpoint()
		}
		sum = plus(sum, chunkSum)
	}
	return sum
}

// crossEntropy is the sum over a chunk of logsumexp(logits) - logits[target], in float32.
func crossEntropy(r *Run, x, targets *graph.Node) *graph.Node {
	logits := graph.ConvertDType(r.Model.Logits(r.Pass, x), dtypes.Float32)
	highest := graph.StopGradient(graph.ReduceAndKeep(logits, graph.ReduceMax, -1))
	shifted := graph.Sub(logits, highest)
	logSum := graph.Log(graph.ReduceSum(graph.Exp(shifted), -1))
	// A comparison with the vocabulary's indices fuses with its neighbours and its
	// gradient is elementwise; a gather's would be a scatter.
	vocabulary := graph.Iota(logits.Graph(), shapes.Make(dtypes.Int32, logits.Shape().Dimensions...), 1)
	isTarget := graph.Equal(vocabulary, graph.BroadcastToShape(graph.ExpandAxes(targets, -1), vocabulary.Shape()))
	chosen := graph.ReduceSum(graph.Where(isTarget, shifted, graph.ZerosLike(shifted)), -1)
	losses := graph.Sub(logSum, chosen)
	return graph.ReduceAllSum(graph.Where(graph.NotEqual(targets, ignore(targets)), losses, graph.ZerosLike(losses)))
}

// chunks cuts n tokens into equal chunks, the last one perhaps shorter.
func (c CausalLM) chunks(vocabulary, n int) [][2]int {
	size := c.ChunkTokens
	if size <= 0 {
		// Each chunk reads the head's weight twice: few chunks where the vocabulary is large.
		const logitsOfAChunk, fewest = 32 << 20, 1024
		size = max(fewest, logitsOfAChunk/vocabulary)
	}
	parts := (n + size - 1) / size
	size = (n + parts - 1) / parts
	var bounds [][2]int
	for from := 0; from < n; from += size {
		bounds = append(bounds, [2]int{from, min(n, from+size)})
	}
	return bounds
}

func ignore(like *graph.Node) *graph.Node {
	return graph.Scalar(like.Graph(), dtypes.Int32, IgnoreIndex)
}

func plus(sum, term *graph.Node) *graph.Node {
	if sum == nil {
		return term
	}
	return graph.Add(sum, term)
}
