package lora

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// MissType is MiSS's name in adapter_config.json.
const MissType = "MISS"

func init() { peft.Register(MissType, decodeMiss) }

// Variants of MiSS, values of its InitWeights.
const (
	// MissBat lets the update depend on the base's weight: for each block of r x r weights
	// W' = W + W·D + D.
	MissBat Init = "bat"
	// MissMini repeats a narrow D over the outputs.
	MissMini Init = "mini"
)

// BiasMissOnly trains the biases of the target modules of MiSS.
const BiasMissOnly Bias = "MiSS_only"

// MissConfig is matrix shard sharing (Kang and Yin 2024, arXiv:2409.15371): the inputs are cut
// into shards of r, and one matrix D [r, out] is shared by all of them,
//
//	y = W x + b + Dᵀ Σ_shards dropout(x_shard)
//
// where the last shard is padded with zeros. Only R has no default.
type MissConfig struct {
	peft.PeftConfig
	// R is the size of a shard, from 1 to the number of inputs. (peft's default is 64.)
	R int `json:"r"`
	// MissDropout is the rate of dropout on the input while training, in [0, 1). MissBat has none.
	MissDropout float64 `json:"miss_dropout"`
	// MiniR is the number of outputs that D has with MissMini; it must divide that of
	// every target. Zero means 1.
	MiniR int `json:"mini_r"`
	// TargetModules says which linear layers are adapted. The zero value means [DefaultTargets].
	TargetModules  peft.Targets `json:"target_modules"`
	ExcludeModules peft.Targets `json:"exclude_modules"`
	// InitWeights is InitDefault (D starts at zero), InitRandom, MissBat or MissMini (zero too).
	InitWeights       Init         `json:"init_weights"`
	LayersToTransform peft.Layers  `json:"layers_to_transform"`
	LayersPattern     peft.Strings `json:"layers_pattern"`
	ModulesToSave     peft.Strings `json:"modules_to_save"`
	// Bias says which of the base's biases are trained too: BiasNone, BiasAll or BiasMissOnly.
	Bias Bias `json:"bias"`
}

// PeftType implements [peft.Config].
func (c MissConfig) PeftType() string { return MissType }

// WithCommon implements [peft.Config].
func (c MissConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c MissConfig) selection() peft.Selection {
	return peft.Selection{
		TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules,
		LayersToTransform: c.LayersToTransform, LayersPattern: c.LayersPattern, ModulesToSave: c.ModulesToSave,
	}
}

// Validate implements [peft.Config].
func (c MissConfig) Validate() error {
	return prefixed("miss",
		checkRank("r", c.R, 64), checkRate("miss_dropout", c.MissDropout), c.checkVariant(),
		checkInitWeights("init_weights", c.InitWeights, InitDefault, InitRandom, MissBat, MissMini),
		c.selection().Validate(), c.Bias.check(BiasMissOnly))
}

func (c MissConfig) checkVariant() error {
	switch {
	case c.MiniR < 0:
		return fmt.Errorf("mini_r is %d, want at least 1", c.MiniR)
	case c.Reading():
		return nil
	case c.MiniR > 1 && c.InitWeights != MissMini:
		return fmt.Errorf(`mini_r is %d, but has no effect without init_weights "mini"`, c.MiniR)
	case c.MissDropout > 0 && c.InitWeights == MissBat:
		return errors.New(`miss_dropout has no effect with init_weights "bat"`)
	}
	return nil
}

// MarshalJSON writes the fields as peft does.
func (c MissConfig) MarshalJSON() ([]byte, error) {
	type plain MissConfig
	return json.Marshal(struct {
		plain
		MissDropout pyjson.Float `json:"miss_dropout"`
		MiniR       int          `json:"mini_r"`
	}{plain(c), pyjson.Float(c.MissDropout), max(1, c.MiniR)})
}

func decodeMiss(data []byte) (peft.Config, error) {
	c := MissConfig{R: 64, MiniR: 1}
	common, err := peft.DecodeFields(data, &c)
	if err != nil {
		return nil, fmt.Errorf("miss: %w", err)
	}
	c.PeftConfig = common
	return c, nil
}

// Attach implements [peft.Config].
func (c MissConfig) Attach(base site.Base) (peft.Adapter, error) {
	return attachRelative("miss", base, c.PeftConfig, c.selection(), DefaultTargets, func(p *planning) (peft.Adapter, error) {
		c.TargetModules, c.ModulesToSave, c.MiniR = p.TargetModules, p.ModulesToSave, max(1, c.MiniR)
		a, err := p.adapter(c, func(_ int, m site.Module) (part, error) {
			one := miss{Module: m, config: &c, name: m.Path + ".miss_block", columns: m.Out}
			if c.InitWeights == MissMini {
				one.columns = c.MiniR
			}
			return one, one.check()
		})
		if err != nil {
			return nil, err
		}
		return p.withBiases(a, c.Bias)
	})
}

// miss is MiSS on one module.
type miss struct {
	site.Module
	config *MissConfig
	name   string
	// columns are those of D.
	columns int
}

func (l miss) check() error {
	if err := wantLinear(l.Module); err != nil {
		return err
	}
	r := l.config.R
	switch {
	case r > l.In:
		return fmt.Errorf("r is %d, but %q has only %d inputs", r, l.Path, l.In)
	case l.config.InitWeights == MissBat && (l.In%r != 0 || l.Out%r != 0):
		return fmt.Errorf(`init_weights "bat": r is %d, but the %d inputs and %d outputs of %q cannot be cut into blocks of that size`, r, l.In, l.Out, l.Path)
	case l.Out%l.columns != 0:
		return fmt.Errorf(`init_weights "mini": mini_r is %d, which does not divide the %d outputs of %q`, l.columns, l.Out, l.Path)
	}
	return nil
}

func (l miss) params() []peft.Param {
	d := peft.Param{Name: l.name, Shape: []int{l.config.R, l.columns}}
	switch l.config.InitWeights {
	case MissBat:
		d.Shape = []int{l.Out / l.config.R, l.config.R, l.config.R}
	case InitRandom:
		d.Init = uniform(l.Out)
	}
	return []peft.Param{d}
}

func (l miss) settings() []peft.Setting { return []peft.Setting{setting("r", float64(l.config.R))} }

func (l miss) delta(u *peft.Use) *graph.Node {
	if l.config.InitWeights == MissBat {
		return u.Site.With(u.X, u.Site.Stored(l.batWeight(u)))
	}
	r, x := l.config.R, u.X
	dims := x.Shape().Dimensions
	lead := dims[:len(dims)-1]
	at := func(last ...int) []int { return append(append([]int{}, lead...), last...) }
	shards := (l.In + r - 1) / r
	if missing := shards*r - l.In; missing > 0 {
		x = graph.Concatenate([]*graph.Node{x, graph.Zeros(x.Graph(), shapes.Make(x.DType(), at(missing)...))}, -1)
	}
	x = u.Pass.Dropout(u.Site.Path, x, l.config.MissDropout)
	sum := graph.ReduceSum(graph.Reshape(x, at(shards, r)...), len(lead))
	y := graphx.MatMul(sum, u.Cast("miss_block"))
	if repeat := l.Out / l.columns; repeat > 1 {
		y = graph.Reshape(graph.BroadcastToDims(graph.InsertAxes(y, len(lead)), at(repeat, l.columns)...), at(l.Out)...)
	}
	return y
}

// batWeight is W·D + D block by block, [out, in]: row block b of W, seen as blocks of r x r,
// times D[b].
func (l miss) batWeight(u *peft.Use) *graph.Node {
	r, rows, columns := l.config.R, l.Out/l.config.R, l.In/l.config.R
	d := u.Cast("miss_block")                                                      // [rows, r, r]
	w := graph.Reshape(u.Site.Unstored(u.Site.FrozenWeight()), rows, r*columns, r) // each row in blocks
	product := graphx.Dot(w, []int{2}, []int{0}, d, []int{1}, []int{0})
	product = graph.Reshape(product, rows, r, columns, r)
	return graph.Reshape(graph.Add(product, graph.InsertAxes(d, 2)), l.Out, l.In)
}

func (l miss) weightDelta(frozen func() []float32, value func(name string) []float32) []float32 {
	r, d := l.config.R, value(l.name)
	delta := make([]float32, l.Out*l.In)
	if l.config.InitWeights != MissBat {
		for i := range delta {
			delta[i] = d[i%l.In%r*l.columns+i/l.In%l.columns]
		}
		return delta
	}
	w := frozen()
	for o := range l.Out {
		block := d[o/r*r*r:][:r*r]
		for at := o * l.In; at < (o+1)*l.In; at += r {
			copy(delta[at:at+r], block[o%r*r:])
			addRow(delta[at:at+r], w[at:at+r], block, 1)
		}
	}
	return delta
}
