package lora

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"

	"gonum.org/v1/gonum/mat"

	"github.com/gopeft/gopeft/internal/linalg"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Conversion says how exact [Convert] is: exactly one of its fields is set.
type Conversion struct {
	// Rank of the LoRA, the same on every module.
	Rank int
	// Energy is the share, in (0, 1], of the squared singular values that each module's own
	// rank keeps at least.
	Energy float64
}

// Convert adds a LoRA that does what another adapter of the model does, as far as its rank
// allows: on each module the nearest matrix to what merging the adapter would add to the
// weight. It takes adapters of any method that can be merged and changes nothing but
// weights of linear layers and embeddings; whole modules (modules_to_save) are taken along.
// The new adapter has scaling 1 and is not active. The report says what was lost.
//
// That is for programs that know LoRA only, and for [peft.PeftModel.Mixed], where LoRA is
// fastest. Methods that change a weight otherwise than by little, such as rotations, need
// large ranks. On error nothing changes.
func Convert(pm *peft.PeftModel, name, to string, c Conversion) (*CombinationReport, error) {
	report, err := c.add(pm, name, to)
	if err != nil {
		return nil, fmt.Errorf("lora: convert adapter %q: %w", name, err)
	}
	return report, nil
}

func (c Conversion) check() error {
	switch {
	case c.Rank == 0 && c.Energy == 0 || c.Rank != 0 && c.Energy != 0:
		return errors.New("want either a Rank or an Energy")
	case c.Rank < 0:
		return fmt.Errorf("Rank is %d, want at least 1", c.Rank)
	case c.Rank == 0 && !(c.Energy > 0 && c.Energy <= 1):
		return fmt.Errorf("Energy is %v, want a share in (0, 1]", c.Energy)
	}
	return nil
}

func (c Conversion) add(pm *peft.PeftModel, name, to string) (*CombinationReport, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s, err := newConverted(pm, name)
	if err != nil {
		return nil, err
	}
	config := LoraConfig{PeftConfig: s.common, R: max(c.Rank, 1), ModulesToSave: s.saved, LayerReplication: s.ranges}
	report := &CombinationReport{}
	ranks := map[string]int{}
	for _, m := range s.targets {
		delta, err := s.delta(pm.Base(), m)
		if err != nil {
			return nil, fmt.Errorf("module %q: %w", m.Path, err)
		}
		svd, err := c.decompose(delta)
		if err != nil {
			return nil, fmt.Errorf("module %q: %w", m.Path, err)
		}
		rank := len(svd.S)
		ranks[m.Path] = rank
		config.R = max(config.R, rank)
		a, b := factors(svd, rank)
		nameA, nameB := layer{Module: m}.names()
		s.values[nameA], s.values[nameB] = a, b
		report.add(residualOf(m.Path, delta, a, b, rank))
	}
	report.Rank, config.LoraAlpha = config.R, float64(config.R)
	for _, m := range s.targets {
		if rank := ranks[m.Path]; rank != config.R {
			pattern := peft.Pattern{Pattern: "^" + regexp.QuoteMeta(m.Path), Value: float64(rank)}
			config.RankPattern, config.AlphaPattern = append(config.RankPattern, pattern), append(config.AlphaPattern, pattern)
		}
	}
	config.TargetModules = peft.Exactly(s.targets, pm.Base().Modules())
	if err := pm.AddAdapterWith(config, s.take, peft.Options{Name: to}); err != nil {
		return nil, err
	}
	if len(s.values) > 0 {
		for left := range s.values {
			err = fmt.Errorf("it also trains %q, which a LoRA has no place for", left)
		}
		return nil, errors.Join(err, pm.DeleteAdapter(to))
	}
	return report, nil
}

// converted is an adapter that is being converted.
type converted struct {
	merger  peft.Merger
	targets []site.Module
	common  peft.PeftConfig
	saved   peft.Strings
	ranges  [][2]int
	// tensors are the adapter's own, values those of the LoRA that were not taken yet.
	tensors, values map[string][]float32
}

func newConverted(pm *peft.PeftModel, name string) (*converted, error) {
	parts, err := pm.Parts(name)
	if err != nil {
		return nil, err
	}
	config, err := pm.Config(name)
	if err != nil {
		return nil, err
	}
	s := &converted{common: config.Common(), values: map[string][]float32{}}
	s.common.Unknown, s.common.Version = nil, ""
	if r, ok := config.(peft.Replicating); ok {
		s.ranges = r.LayerRanges()
	}
	merger, ok := parts[0].(peft.Merger)
	if !ok {
		return nil, fmt.Errorf("adapters of method %s cannot be merged, and so not be converted", config.PeftType())
	}
	s.merger = merger
	modules := map[string]site.Module{}
	for _, m := range pm.Base().Modules() {
		modules[peft.OwnWeight(m)] = m
	}
	for _, parameter := range merger.Merges() {
		m, ok := modules[parameter]
		if p, replaces := parts[0].(peft.ParameterAdapter); !ok || m.Kind != site.Linear && m.Kind != site.Embedding || replaces && p.Replaces(parameter) {
			return nil, fmt.Errorf("its method, %s, changes %q otherwise than by adding to the weight of a linear layer or an embedding", config.PeftType(), parameter)
		}
		s.targets = append(s.targets, m)
	}
	if s.tensors, err = pm.TensorValues(name); err != nil {
		return nil, err
	}
	for _, part := range parts[1:] {
		for _, p := range part.Params() {
			s.values[p.Name] = s.tensors[p.Name]
		}
	}
	var fields struct {
		ModulesToSave peft.Strings `json:"modules_to_save"`
	}
	data, err := json.Marshal(config)
	if err == nil {
		err = json.Unmarshal(data, &fields)
	}
	s.saved = fields.ModulesToSave
	return s, err
}

// take returns values once.
func (s *converted) take(name string) []float32 {
	values := s.values[name]
	delete(s.values, name)
	return values
}

// delta is what merging adds to a module's weight, as [out, in].
func (s *converted) delta(base site.Base, m site.Module) (*mat.Dense, error) {
	frozen, err := weightOf(base, m)
	if err != nil {
		return nil, err
	}
	value := func(name string) []float32 { return s.tensors[name] }
	merged, alone := slices.Clone(frozen), make([]float32, len(frozen))
	if err := s.merger.Merge(peft.OwnWeight(m), merged, slices.Clone(frozen), value); err != nil {
		return nil, err
	}
	if err := s.merger.Merge(peft.OwnWeight(m), alone, slices.Clone(frozen), value); err != nil {
		return nil, err
	}
	// What an additive method adds to zero has not been rounded beside the weight.
	delta, additive := make([]float64, len(frozen)), true
	for i := range delta {
		delta[i] = float64(merged[i]) - float64(frozen[i])
		rounding := 4e-7 * max(math.Abs(float64(merged[i])), math.Abs(float64(frozen[i])), math.Abs(float64(alone[i])))
		additive = additive && math.Abs(delta[i]-float64(alone[i])) <= rounding
	}
	if additive {
		delta = wide(alone)
	}
	if m.Kind == site.Embedding || m.Transposed {
		return mat.DenseCopyOf(mat.NewDense(m.In, m.Out, delta).T()), nil
	}
	return mat.NewDense(m.Out, m.In, delta), nil
}

// decompose finds the singular values that are kept.
func (c Conversion) decompose(delta *mat.Dense) (linalg.SVD, error) {
	rows, columns := delta.Dims()
	most := min(rows, columns)
	if c.Rank > 0 {
		if c.Rank > most {
			return linalg.SVD{}, fmt.Errorf("the rank %d is larger than the weight, %d x %d", c.Rank, rows, columns)
		}
		return linalg.Truncated(delta, c.Rank)
	}
	norm := mat.Norm(delta, 2)
	wanted := c.Energy * norm * norm
	for k := min(16, most); ; k = min(2*k, most) {
		svd, err := linalg.Truncated(delta, k)
		if err != nil {
			return linalg.SVD{}, err
		}
		var kept float64
		for i, s := range svd.S {
			if kept += s * s; kept >= wanted*(1-1e-12) {
				return svd.First(i + 1), nil
			}
		}
		if k == most {
			return svd, nil
		}
	}
}

// residualOf is delta less B·A.
func residualOf(path string, delta *mat.Dense, a, b []float32, rank int) Residual {
	rows, columns := delta.Dims()
	product := term{scale: 1, a: a, b: b, rows: rows, rank: rank, columns: columns}.product()
	r := Residual{Module: path}
	for i := range rows {
		for j, v := range delta.RawRowView(i) {
			d := math.Abs(v - product[i*columns+j])
			r.Max, r.Frobenius, r.Norm = max(r.Max, d), r.Frobenius+d*d, r.Norm+v*v
		}
	}
	r.Frobenius, r.Norm = math.Sqrt(r.Frobenius), math.Sqrt(r.Norm)
	return r
}
