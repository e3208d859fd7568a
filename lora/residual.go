package lora

import (
	"errors"
	"math"
	"regexp"
	"slices"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/peft"
)

// PiSSA, OLoRA, CorDA and LoftQ start with a product s·B0·A0 that is not zero, and peft
// takes it out of the base's weight: W0 = W - s·B0·A0. Here the base stays as it is, and
// the adapter takes it out of the output:
//
//	y = W x + b + s·(B·A dropout(x) - B0·A0 x)
//
// A0 and B0 are constants. The file of such an adapter holds, as peft's conversion on
// saving does, a plain LoRA of twice the rank that means the same on the base as it is:
//
//	A' = [A; A0], B' = [B | -B0], with s' = s.
//
// A file that peft wrote without conversion is read too: A0 and B0 are then computed again
// from the base, as peft does.

// Names of the constants, behind a module's path.
const (
	initialA = "lora_A.initial"
	initialB = "lora_B.initial"
)

// residualParams are A and B, which start at the given values, and their constant copies.
func (l layer) residualParams(s *starts) []peft.Param {
	all := l.params(InitDefault)
	for i, fill := range []func(start) []float32{func(s start) []float32 { return s.a }, func(s start) []float32 { return s.b }} {
		all[i].Init = s.init(l.Path, fill)
		all = append(all, peft.Param{
			Name: l.Path + "." + []string{initialA, initialB}[i], Shape: all[i].Shape,
			Init: all[i].Init, Frozen: true, Unsaved: true,
		})
	}
	return all
}

// factors returns A and B, for a residual layer A' and B', in float32.
func (l layer) factors(u *peft.Use) (A, B *graph.Node) {
	nameA, nameB := l.names()
	A, B = u.Values().Get(nameA), u.Values().Get(nameB)
	if l.residual {
		A = graph.Concatenate([]*graph.Node{A, u.Value(initialA)}, 0)
		B = graph.Concatenate([]*graph.Node{B, graph.Neg(u.Value(initialB))}, 1)
	}
	return A, B
}

// undropped is s·B0·A0 (dropout(x) - x): dropout does not act on what belongs to the base.
func (a *adapter) undropped(u *peft.Use, dropped *graph.Node) *graph.Node {
	return a.product(u, graph.Sub(dropped, u.X), u.Value(initialA), u.Value(initialB))
}

// hostFactors is factors on the host, with the rank.
func (l layer) hostFactors(value func(name string) []float32) (A, B []float32, r int) {
	nameA, nameB := l.names()
	A, B, r = value(nameA), value(nameB), l.r
	if !l.residual {
		return A, B, r
	}
	B0 := value(l.Path + "." + initialB)
	joined := make([]float32, 0, 2*len(B))
	for o := range l.Out {
		joined = append(joined, B[o*r:(o+1)*r]...)
		for _, v := range B0[o*r : (o+1)*r] {
			joined = append(joined, -v)
		}
	}
	return slices.Concat(A, value(l.Path+"."+initialA)), joined, 2 * r
}

var _ peft.FileForm = (*adapter)(nil)

// FileForm implements [peft.FileForm].
func (a *adapter) FileForm(value func(name string) []float32) (peft.Config, []peft.FileTensor, error) {
	if !a.config.InitLoraWeights.residual() {
		return nil, nil, nil
	}
	if err := a.config.checkConversion(); err != nil {
		return nil, nil, err
	}
	var list []peft.FileTensor
	converted := map[string]bool{}
	for _, m := range a.targets {
		l := a.layers[m.Path]
		if !l.residual {
			continue
		}
		nameA, nameB := l.names()
		A, B, r := l.hostFactors(value)
		list = append(list, peft.FileTensor{Name: nameA, Shape: []int{r, l.In}, Values: A}, peft.FileTensor{Name: nameB, Shape: []int{l.Out, r}, Values: B})
		converted[nameA], converted[nameB] = true, true
	}
	for _, p := range a.params {
		if !p.Unsaved && !converted[p.Name] {
			list = append(list, peft.FileTensor{Name: p.Name, Key: p.Key, Shape: p.Shape, Values: value(p.Name)})
		}
	}
	return a.converted(), list, nil
}

// converted is the configuration of the plain LoRA of twice the rank. Embeddings, which
// no such initialisation changes, keep their rank and scale by entries of their own.
func (a *adapter) converted() LoraConfig {
	c := a.config
	c.InitLoraWeights, c.LoftqConfig = InitDefault, LoftqConfig{}
	factor := 2.0
	if c.UseRSLoRA {
		factor = math.Sqrt2
	}
	ranks, alphas := slices.Clone(c.RankPattern), slices.Clone(c.AlphaPattern)
	for i := range ranks {
		ranks[i].Value *= 2
	}
	for i := range alphas {
		alphas[i].Value *= factor
	}
	var keptRanks, keptAlphas peft.Patterns
	for _, m := range a.targets {
		if l := a.layers[m.Path]; !l.residual {
			pattern := "^" + regexp.QuoteMeta(m.Path)
			keptRanks = append(keptRanks, peft.Pattern{Pattern: pattern, Value: float64(l.r)})
			keptAlphas = append(keptAlphas, peft.Pattern{Pattern: pattern, Value: l.alpha})
		}
	}
	c.R *= 2
	c.LoraAlpha *= factor
	c.RankPattern, c.AlphaPattern = append(keptRanks, ranks...), append(keptAlphas, alphas...)
	return c
}

// checkConversion refuses what peft's conversion refuses.
func (c LoraConfig) checkConversion() error {
	if c.InitLoraWeights.residual() && c.UseRSLoRA && len(c.RankPattern)+len(c.AlphaPattern) > 0 {
		return errors.New("init_lora_weights \"" + string(c.InitLoraWeights) + "\" with use_rslora and rank_pattern or alpha_pattern cannot be saved: peft's format has no conversion for it")
	}
	return nil
}
