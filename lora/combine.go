package lora

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// CombinationType says how [AddWeightedAdapter] makes one adapter of several. With weights
// w, factors s and matrices A and B the sum that is meant is Σ w·s·B·A, on each module that
// some adapter has.
type CombinationType string

// The types, by their names in peft. Those that end in _svd combine the products s·B·A,
// whole matrices, and take the best approximation of the wanted rank; the others combine A
// and B apart, which needs equal ranks and leaves products of one adapter's B and
// another's A in the result: Σ √|ws|·B times Σ ±√|ws|·A.
const (
	// Cat stacks A and B: exact, its rank is the sum of ranks. The default.
	Cat CombinationType = "cat"
	// Linear adds up.
	Linear CombinationType = "linear"
	// SVD is the best approximation of the sum that its rank allows.
	SVD CombinationType = "svd"
	// Ties keeps the largest values of each adapter, and of those the ones with the
	// majority's sign, whose mean it takes (Yadav et al. 2023, arXiv:2306.01708).
	Ties    CombinationType = "ties"
	TiesSVD CombinationType = "ties_svd"
	// DareLinear keeps values at random, scaled up, and adds (Yu et al. 2023, arXiv:2311.03099).
	DareLinear    CombinationType = "dare_linear"
	DareLinearSVD CombinationType = "dare_linear_svd"
	// DareTies keeps values at random, scaled up, and goes on as Ties does.
	DareTies    CombinationType = "dare_ties"
	DareTiesSVD CombinationType = "dare_ties_svd"
	// MagnitudePrune keeps the largest values of each adapter and adds.
	MagnitudePrune    CombinationType = "magnitude_prune"
	MagnitudePruneSVD CombinationType = "magnitude_prune_svd"
)

// MajoritySign says how the sign of a value is elected, see [Ties].
type MajoritySign string

const (
	// SignTotal is the sign of the sum. The default.
	SignTotal MajoritySign = "total"
	// SignFrequency is the sign that more adapters have.
	SignFrequency MajoritySign = "frequency"
)

// Combination says which adapters of a model are combined, and how.
type Combination struct {
	// Adapters are names in the model, and Weights theirs, which may be negative.
	Adapters []string
	Weights  []float64
	// Type is [Cat] when empty.
	Type CombinationType
	// Rank of the result, for types with an SVD. 0: the largest of the adapters.
	Rank int
	// Density is the share of values that are kept, in (0, 1], for types that drop some.
	Density float64
	// MajoritySign is [SignTotal] when empty.
	MajoritySign MajoritySign
	// Seed of what is kept at random, see [DareLinear].
	Seed uint64
}

// CombinationReport says how far the combined adapter is from the weighted sum of what
// it was made of.
type CombinationReport struct {
	// Rank of the combined adapter; its scaling is 1.
	Rank    int
	Modules []Residual
	// Max is the largest element of all residuals, Frobenius the root of the sum of their
	// squares, and Norm the same of the sums.
	Max, Frobenius, Norm float64
}

// Residual is Σ w·s·B·A of the adapters less s·B·A of the combined one, on one module.
type Residual struct {
	Module string
	// Max is the largest absolute element, Frobenius the norm, Norm that of the sum itself.
	Max, Frobenius, Norm float64
}

// String is one line.
func (r CombinationReport) String() string {
	share := 0.0
	if r.Norm > 0 {
		share = r.Frobenius / r.Norm
	}
	return fmt.Sprintf("combined %d modules at rank %d, residual %.3g of the sum (largest element %.3g)", len(r.Modules), r.Rank, share, r.Max)
}

// AddWeightedAdapter adds a LoRA that combines others of the model, under a new name. It is
// an adapter like any other, with scaling 1: it can be saved and trained, and is not active.
// The report says what the combination lost.
//
// The adapters must be LoRAs whose files have nothing but A and B (no whole modules, biases, DoRA).
// On error nothing changes.
func AddWeightedAdapter(pm *peft.PeftModel, name string, c Combination) (*CombinationReport, error) {
	report, err := c.add(pm, name)
	if err != nil {
		return nil, fmt.Errorf("lora: combine adapters %s: %w", strings.Join(c.Adapters, ", "), err)
	}
	return report, nil
}

func (c Combination) add(pm *peft.PeftModel, name string) (*CombinationReport, error) {
	if slices.Contains(pm.Adapters(), name) {
		return nil, fmt.Errorf("adapter %q already exists", name)
	}
	c, err := c.complete()
	if err != nil {
		return nil, err
	}
	sources := make([]*source, len(c.Adapters))
	for i, adapter := range c.Adapters {
		if sources[i], err = newSource(pm, adapter, c.Weights[i]); err != nil {
			return nil, err
		}
	}
	rank, err := c.rank(sources)
	if err != nil {
		return nil, err
	}
	config := sources[0].config
	config.R, config.LoraAlpha, config.RankPattern, config.AlphaPattern, config.UseRSLoRA = rank, float64(rank), nil, nil, false
	config.InitLoraWeights, config.LoftqConfig = InitDefault, LoftqConfig{}
	config.ExcludeModules, config.LayersToTransform, config.LayersPattern = peft.Targets{}, nil, nil

	modules := pm.Base().Modules()
	var targets []site.Module
	values := map[string][]float32{}
	report := &CombinationReport{Rank: rank}
	for _, m := range modules {
		var terms []term
		for _, s := range sources {
			if t, ok := s.terms[m.Path]; ok {
				terms = append(terms, t)
			}
		}
		if len(terms) == 0 {
			continue
		}
		targets = append(targets, m)
		a, b, err := c.combine(m.Path, terms, rank)
		if err != nil {
			return nil, fmt.Errorf("module %q: %w", m.Path, err)
		}
		nameA, nameB := layer{Module: m}.names()
		values[nameA], values[nameB] = a, b
		report.add(residual(m.Path, terms, a, b, rank))
	}
	config.TargetModules = peft.Exactly(targets, modules)
	err = pm.AddAdapterWith(config, func(name string) []float32 { return values[name] }, peft.Options{Name: name})
	return report, err
}

func (r *CombinationReport) add(m Residual) {
	r.Modules = append(r.Modules, m)
	r.Max = max(r.Max, m.Max)
	r.Frobenius = math.Hypot(r.Frobenius, m.Frobenius)
	r.Norm = math.Hypot(r.Norm, m.Norm)
}

// complete checks the settings and fills in defaults.
func (c Combination) complete() (Combination, error) {
	if len(c.Adapters) == 0 {
		return c, errors.New("no adapter is named")
	}
	if len(c.Adapters) != len(c.Weights) {
		return c, fmt.Errorf("%d adapters have %d weights", len(c.Adapters), len(c.Weights))
	}
	for i, w := range c.Weights {
		if math.IsNaN(w) || math.IsInf(w, 0) {
			return c, fmt.Errorf("the weight of %q is %v", c.Adapters[i], w)
		}
		if slices.Contains(c.Adapters[:i], c.Adapters[i]) {
			return c, fmt.Errorf("adapter %q is named twice", c.Adapters[i])
		}
	}
	if c.Type == "" {
		c.Type = Cat
	}
	if c.MajoritySign == "" {
		c.MajoritySign = SignTotal
	}
	known := []CombinationType{Cat, Linear, SVD, Ties, TiesSVD, DareLinear, DareLinearSVD, DareTies, DareTiesSVD, MagnitudePrune, MagnitudePruneSVD}
	switch {
	case !slices.Contains(known, c.Type):
		return c, fmt.Errorf("combination type %q, want one of %v", string(c.Type), known)
	case c.prunes() && !(c.Density > 0 && c.Density <= 1):
		return c, fmt.Errorf("%s needs a Density in (0, 1], got %v", c.Type, c.Density)
	case !c.prunes() && c.Density != 0:
		return c, fmt.Errorf("%s drops no values: Density has no effect", c.Type)
	case c.Rank < 0 || c.Rank > 0 && !c.svd():
		return c, fmt.Errorf("Rank is %d, and only types with an SVD choose one", c.Rank)
	case c.MajoritySign != SignTotal && c.MajoritySign != SignFrequency:
		return c, fmt.Errorf("majority sign %q, want %q or %q", string(c.MajoritySign), SignTotal, SignFrequency)
	}
	return c, nil
}

func (c Combination) svd() bool { return strings.HasSuffix(string(c.Type), "svd") }

func (c Combination) prunes() bool {
	return !slices.Contains([]CombinationType{Cat, Linear, SVD}, c.Type)
}

// rank is that of the result.
func (c Combination) rank(sources []*source) (int, error) {
	sum, largest := 0, 0
	for _, s := range sources {
		sum, largest = sum+s.rank, max(largest, s.rank)
	}
	switch {
	case c.Type == Cat:
		return sum, nil
	case c.Rank > 0:
		return c.Rank, nil
	case c.svd():
		return largest, nil
	}
	for i, s := range sources {
		if s.rank != largest {
			return 0, fmt.Errorf("%s adds A and B apart and needs equal ranks, but %q has rank %d and others %d: use cat or svd", c.Type, c.Adapters[i], s.rank, largest)
		}
	}
	return largest, nil
}

// source is one of the adapters that are combined.
type source struct {
	config LoraConfig
	rank   int // the largest of its modules
	terms  map[string]term
}

// term is one adapter's part on one module.
type term struct {
	adapter string
	// weight is given, scale is s.
	weight, scale float64
	// a is [rank, columns], b [rows, rank].
	a, b                []float32
	rows, rank, columns int
}

func newSource(pm *peft.PeftModel, name string, weight float64) (*source, error) {
	parts, err := pm.Parts(name)
	if err != nil {
		return nil, err
	}
	config, err := pm.Config(name)
	if err != nil {
		return nil, err
	}
	a, ok := parts[0].(*adapter)
	if !ok {
		return nil, fmt.Errorf("adapter %q: its method is %s, want %s", name, config.PeftType(), PeftType)
	}
	if len(parts) > 1 {
		return nil, fmt.Errorf("adapter %q also trains whole modules or parameters (modules_to_save, bias, ...), which cannot be combined", name)
	}
	tensors, err := pm.FileTensors(name) // PiSSA and its like are plain LoRAs there
	if err != nil {
		return nil, err
	}
	of := map[string]peft.FileTensor{}
	for _, t := range tensors {
		if _, ok := rankAxis(t.Name); !ok {
			return nil, fmt.Errorf("adapter %q has %q besides A and B, which cannot be combined", name, t.Name)
		}
		of[t.Name] = t
	}
	s := &source{config: config.(LoraConfig), terms: map[string]term{}}
	for path, l := range a.layers {
		nameA, nameB := l.names()
		ta, ok := of[nameA]
		if !ok { // a target that a swapped adapter lacks
			continue
		}
		t := term{adapter: name, weight: weight, scale: l.scaling, a: ta.Values, b: of[nameB].Values, rank: ta.Shape[0]}
		t.rows, t.columns = len(t.b)/t.rank, len(t.a)/t.rank
		if l.Conv != nil && l.Conv.Groups > 1 {
			return nil, fmt.Errorf("adapter %q: module %q is a convolution with %d groups, which cannot be combined", name, path, l.Conv.Groups)
		}
		s.terms[path] = t
		s.rank = max(s.rank, t.rank)
	}
	return s, nil
}
