package lora

import (
	"maps"
	"math/big"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/peft"
)

// This file is how AdaLoRA is trained: the term of the loss, what is pruned when, and what
// the file then holds. Source: peft's RankAllocator (tuners/adalora/layer.py), called after
// every optimizer step with the number of steps made, this one included.

// trained are the names of a module's trained matrices.
var trained = []string{"A", "B", "E"}

// Names of what AdaLoRA keeps from step to step, behind a module's path.
const (
	adaSensitivity = ".adalora_sensitivity_" // smoothed |value · gradient|, for each of A, B, E
	adaUncertainty = ".adalora_uncertainty_" // its smoothed deviation
	adaMask        = ".adalora_mask"         // 1 for each triplet that is left, else 0
)

// state are the tensors that AdaLoRA keeps from step to step.
func (l triplets) state() []peft.Param {
	shapes := l.matrices()
	params := []peft.Param{{Name: l.Path + adaMask, Shape: []int{l.r}, Init: constant(1), Frozen: true, Unsaved: true}}
	for _, matrix := range trained {
		for _, kind := range []string{adaSensitivity, adaUncertainty} {
			params = append(params, peft.Param{Name: l.Path + kind + matrix, Shape: shapes[matrix], Frozen: true, Unsaved: true})
		}
	}
	return params
}

// ExtraLoss implements [peft.LossAdapter]: the weighted mean of |AAᵀ - I| and |BᵀB - I|.
func (a *adaLora) ExtraLoss(v *peft.Values) *graph.Node {
	var sum *graph.Node
	add := func(p *graph.Node, axis int) {
		g := p.Graph()
		gram := graph.Dot(p, p).General([]int{axis}, nil, []int{axis}, nil)
		difference := graph.Sub(gram, graph.ConvertDType(graph.Diagonal(g, gram.Shape().Dim(0)), dtypes.Float32))
		// The smallest numbers keep the gradient at zero finite.
		norm := graph.Sqrt(graph.AddScalar(graph.ReduceAllSum(graph.Square(difference)), 1e-30))
		if sum == nil {
			sum = norm
		} else {
			sum = graph.Add(sum, norm)
		}
	}
	for _, l := range a.layers {
		if l.r > 0 {
			add(v.Get(l.name("A")), 1)
			add(v.Get(l.name("B")), 0)
		}
	}
	if sum == nil { // all is pruned, and other tensors are trained
		return graph.MulScalar(graph.ReduceAllSum(v.Views()[0]), 0)
	}
	return graph.MulScalar(sum, max(0, a.config.OrthRegWeight)/float64(2*len(a.layers)))
}

// TotalSteps implements [peft.ScheduledAdapter]. An adapter from a file may be trained further,
// as long as one likes.
func (a *adaLora) TotalSteps() int {
	if a.config.Reading() {
		return 0
	}
	return a.config.TotalStep
}

// AfterStep implements [peft.StepAdapter].
func (a *adaLora) AfterStep(step *graph.Node, v *peft.Values, gradient func(name string) *graph.Node) map[string]*graph.Node {
	c, g := a.config, step.Graph()
	number := func(n int) *graph.Node { return graph.Scalar(g, dtypes.Int32, n) }
	last := c.TotalStep - c.TFinal // the last step that prunes
	changed := map[string]*graph.Node{}
	var scores []*graph.Node
	for _, l := range a.layers {
		if l.r > 0 {
			scores = append(scores, l.importance(v, gradient, graph.LessThan(step, number(last)), changed))
		}
	}
	if len(scores) == 0 {
		return nil
	}
	inTurn := graph.Equal(graph.Mod(step, number(c.DeltaT)), number(0))
	prunes := graph.LogicalOr(graph.Equal(step, number(last)),
		graph.LogicalAnd(inTurn, graph.LogicalAnd(graph.GreaterThan(step, number(c.TInit)), graph.LessThan(step, number(last)))))
	masks := graph.LogicalOr(prunes, graph.GreaterThan(step, number(last)))
	threshold := a.threshold(step, scores)
	for _, l := range a.layers {
		if l.r == 0 {
			continue
		}
		kept := graph.ConvertDType(graph.GreaterThan(scores[0], threshold), dtypes.Float32)
		scores = scores[1:]
		mask := graph.Where(prunes, kept, v.Get(l.Path+adaMask))
		e := v.Get(l.name("E"))
		changed[l.Path+adaMask] = mask
		changed[l.name("E")] = graph.Where(masks, graph.Mul(e, graph.InsertAxes(mask, -1)), e)
	}
	return changed
}

// importance returns the importance of each of the module's triplets [r], and puts the new
// averages into changed.
func (l triplets) importance(v *peft.Values, gradient func(name string) *graph.Node, update *graph.Node, changed map[string]*graph.Node) *graph.Node {
	var sum *graph.Node
	for _, matrix := range trained {
		smooth := func(kind string, beta float64, value *graph.Node) *graph.Node {
			old := v.Get(l.Path + kind + matrix)
			next := graph.Add(graph.MulScalar(old, beta), graph.MulScalar(value, 1-beta))
			next = graph.Where(update, next, old)
			changed[l.Path+kind+matrix] = next
			return next
		}
		now := graph.Abs(graph.Mul(v.Get(l.name(matrix)), gradient(l.name(matrix))))
		sensitivity := smooth(adaSensitivity, l.config.Beta1, now)
		uncertainty := smooth(adaUncertainty, l.config.Beta2, graph.Abs(graph.Sub(now, sensitivity)))
		score := graph.Mul(sensitivity, uncertainty)
		if matrix == "B" {
			score = graph.ReduceMean(score, 0)
		} else {
			score = graph.ReduceMean(score, 1)
		}
		if sum == nil {
			sum = score
		} else {
			sum = graph.Add(sum, score)
		}
	}
	return sum
}

// threshold is the importance of the most important triplet that is pruned at a step,
// negative if none is.
func (a *adaLora) threshold(step *graph.Node, scores []*graph.Node) *graph.Node {
	g := step.Graph()
	n := 0
	for _, s := range scores {
		n += s.Shape().Size()
	}
	sorted := graph.Sort(graph.Concatenate(scores, 0), 0, true)
	wanted := graph.ReduceAllSum(graph.ConvertDType(graph.GreaterOrEqual(step, graph.Const(g, pruningSteps(a.config, len(a.layers)))), dtypes.Int32))
	// Those that the rank pattern of a file has left out count as pruned.
	wanted = graph.SubScalar(wanted, len(a.layers)*a.config.InitR-n)
	at := graph.Equal(graph.Iota(g, sorted.Shape().Clone(), 0), graph.ConvertDType(graph.SubScalar(wanted, 1), dtypes.Float32))
	nth := graph.ReduceAllSum(graph.Where(at, sorted, graph.ZerosLike(sorted)))
	return graph.Where(graph.GreaterThan(wanted, graph.Scalar(g, dtypes.Int32, 0)), nth, graph.Scalar(g, dtypes.Float32, -1))
}

// pruningSteps returns for 1, 2, ... pruned triplets the first step by which so many are to be.
func pruningSteps(c AdaLoraConfig, modules int) []int32 {
	first, last := c.TInit+1, c.TotalStep-c.TFinal
	steps := make([]int32, max(1, (c.InitR-c.TargetR)*modules))
	for i := range steps {
		low, high := first, last+1
		for low < high {
			if middle := (low + high) / 2; c.prunedBy(middle, modules) > i {
				high = middle
			} else {
				low = middle + 1
			}
		}
		steps[i] = int32(low)
	}
	return steps
}

// prunedBy is how many of all triplets are pruned by a step after TInit: a budget that falls
// with the third power of the time that is left, rounded as in Python.
func (c AdaLoraConfig) prunedBy(step, modules int) int {
	all, target := c.InitR*modules, c.TargetR*modules
	left := 1 - float64(step-c.TInit)/float64(c.TotalStep-c.TFinal-c.TInit)
	cube := new(big.Float).SetPrec(200).SetFloat64(left)
	cube.Mul(cube, new(big.Float).SetPrec(200).Mul(cube, cube))
	rounded, _ := cube.Float64() // once, as pow does
	product := float64(all-target) * rounded
	return all - int(product+float64(target))
}

// FileForm implements [peft.FileForm]: the file holds the triplets that are left, and its
// configuration says which they are. A triplet whose value came back since it was pruned (as
// can be with DeltaT above 1) is left too, so that nothing is lost.
func (a *adaLora) FileForm(value func(name string) []float32) (peft.Config, []peft.FileTensor, error) {
	c := a.config
	c.RankPattern = maps.Clone(c.RankPattern)
	kept := map[string][]int{}
	for _, l := range a.layers {
		kept[l.Path] = l.kept(value)
		if len(kept[l.Path]) < l.r && c.RankPattern == nil {
			c.RankPattern = map[string][]bool{}
		}
	}
	var list []peft.FileTensor
	for _, l := range a.layers {
		keep := kept[l.Path]
		if c.RankPattern != nil {
			c.RankPattern[l.name("E")] = l.rankPattern(keep)
		}
		rows := func(x []float32, width int) []float32 {
			out := []float32{}
			for _, i := range keep {
				out = append(out, x[i*width:(i+1)*width]...)
			}
			return out
		}
		b := graphx.Transposed(rows(graphx.Transposed(value(l.name("B")), l.Out, l.r), l.Out), len(keep), l.Out)
		list = append(list,
			peft.FileTensor{Name: l.name("A"), Shape: []int{len(keep), l.inputs}, Values: rows(value(l.name("A")), l.inputs)},
			peft.FileTensor{Name: l.name("B"), Shape: []int{l.Out, len(keep)}, Values: b},
			peft.FileTensor{Name: l.name("E"), Shape: []int{len(keep), 1}, Values: rows(value(l.name("E")), 1)})
	}
	return c, list, nil
}

// kept are the indices of the triplets that are left.
func (l triplets) kept(value func(name string) []float32) []int {
	var keep []int
	if l.r == 0 {
		return nil
	}
	mask, e := value(l.Path+adaMask), value(l.name("E"))
	for i := range l.r {
		if mask[i] != 0 || e[i] != 0 {
			keep = append(keep, i)
		}
	}
	return keep
}

// rankPattern says which of the first init_r triplets are left, where those of keep are
// indices into what the configuration had left.
func (l triplets) rankPattern(keep []int) []bool {
	pattern := make([]bool, l.config.InitR)
	before, ok := l.config.RankPattern[l.name("E")]
	n := 0
	for i := range pattern {
		if ok && !before[i] {
			continue
		}
		pattern[i] = slices.Contains(keep, n)
		n++
	}
	return pattern
}
