package lora

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// OftType is OFT's name in adapter_config.json.
const OftType = "OFT"

func init() { peft.Register(OftType, decodeOft) }

// BiasOftOnly trains the biases of an OFT's target modules. ("oft_only" in peft)
const BiasOftOnly Bias = "oft_only"

// OftConfig is orthogonal fine-tuning (Qiu et al. 2023, arXiv:2306.07280) in the form that
// turns the input (Qiu et al. 2025, arXiv:2506.19847), field by field the OFTConfig of peft:
//
//	y = W·(x·diag(R)) + b,  R = Cayley transform of a skew-symmetric matrix
//
// with blocks R along the inputs. A new adapter changes nothing.
type OftConfig struct {
	peft.PeftConfig
	// R is the number of blocks and OftBlockSize their size: one of both, which must divide
	// the number of inputs of every target. Zero in both means blocks of 32. (Where a
	// size does not divide, peft takes the nearest that does; only files are read so.)
	R            int `json:"r"`
	OftBlockSize int `json:"oft_block_size"`
	// ModuleDropout is the rate at which blocks are left out in training, in [0, 1), drawn
	// for each row of the batch. With BlockShare there is none. (peft has the option, but
	// its layers do not use it.)
	ModuleDropout float64 `json:"module_dropout"`
	// TargetModules says which linear layers are adapted. The zero value means [DefaultTargets].
	TargetModules     peft.Targets `json:"target_modules"`
	ExcludeModules    peft.Targets `json:"exclude_modules"`
	LayersToTransform peft.Layers  `json:"layers_to_transform"`
	LayersPattern     peft.Strings `json:"layers_pattern"`
	ModulesToSave     peft.Strings `json:"modules_to_save"`
	// FanInFanOut decides nothing, see [LoraConfig].
	FanInFanOut bool `json:"fan_in_fan_out"`
	// Bias is BiasNone, BiasAll or BiasOftOnly.
	Bias Bias `json:"bias"`
	// InitWeights: a new adapter is the identity. If Off, its values are drawn from
	// N(0, 0.1), for tests.
	InitWeights Switch `json:"init_weights"`
	// Coft keeps each block's skew-symmetric matrix within Eps/√(number of blocks) of zero:
	// what a training step moves beyond is moved back. Zero in Eps means 6e-5.
	Coft bool    `json:"coft"`
	Eps  float64 `json:"eps"`
	// BlockShare has one R for all blocks.
	BlockShare bool `json:"block_share"`
	// UseCayleyNeumann replaces the inverse in the Cayley transform by the first
	// NumCayleyNeumannTerms of its series: less work, and orthogonal only nearly, for
	// small rotations. If Off the transform is exact. Zero terms mean 5.
	UseCayleyNeumann      Switch `json:"use_cayley_neumann"`
	NumCayleyNeumannTerms int    `json:"num_cayley_neumann_terms"`
}

// withDefaults fills in peft's.
func (c OftConfig) withDefaults() OftConfig {
	if c.R == 0 && c.OftBlockSize == 0 {
		c.OftBlockSize = 32
	}
	if c.Eps == 0 {
		c.Eps = 6e-5
	}
	if c.NumCayleyNeumannTerms == 0 {
		c.NumCayleyNeumannTerms = 5
	}
	return c
}

// PeftType implements [peft.Config].
func (c OftConfig) PeftType() string { return OftType }

// WithCommon implements [peft.Config].
func (c OftConfig) WithCommon(common peft.PeftConfig) peft.Config {
	c.PeftConfig = common
	return c
}

func (c OftConfig) selection() peft.Selection {
	return peft.Selection{
		TargetModules: c.TargetModules, ExcludeModules: c.ExcludeModules,
		LayersToTransform: c.LayersToTransform, LayersPattern: c.LayersPattern, ModulesToSave: c.ModulesToSave,
	}
}

// Validate implements [peft.Config].
func (c OftConfig) Validate() error {
	return prefixed("oft", c.withDefaults().validate(), checkRate("module_dropout", c.ModuleDropout), c.Bias.check(BiasOftOnly), c.selection().Validate())
}

func (c OftConfig) validate() error {
	switch {
	case c.R < 0 || c.OftBlockSize < 0:
		return fmt.Errorf("r is %d and oft_block_size is %d, want neither to be negative", c.R, c.OftBlockSize)
	case c.R != 0 && c.OftBlockSize != 0:
		return fmt.Errorf("r is %d and oft_block_size is %d, want one of both: their product is the number of inputs", c.R, c.OftBlockSize)
	case !(c.Eps > 0) || math.IsInf(c.Eps, 0):
		return fmt.Errorf("eps is %v, want a positive number", c.Eps)
	case c.NumCayleyNeumannTerms < 2:
		return fmt.Errorf("num_cayley_neumann_terms is %d, want at least 2", c.NumCayleyNeumannTerms)
	case c.ModuleDropout > 0 && c.BlockShare && !c.Reading():
		return errors.New("module_dropout has no effect with block_share")
	}
	return nil
}

// MarshalJSON writes the fields as peft does.
func (c OftConfig) MarshalJSON() ([]byte, error) {
	type plain OftConfig
	c = c.withDefaults()
	return json.Marshal(struct {
		plain
		ModuleDropout pyjson.Float `json:"module_dropout"`
		Eps           pyjson.Float `json:"eps"`
	}{plain(c), pyjson.Float(c.ModuleDropout), pyjson.Float(c.Eps)})
}

func decodeOft(data []byte) (peft.Config, error) {
	c := OftConfig{OftBlockSize: 32}
	common, err := peft.DecodeFields(data, &c)
	if err == nil {
		c.PeftConfig = common
		err = c.readOld(data)
	}
	if err != nil {
		return nil, fmt.Errorf("oft: %w", err)
	}
	return c, nil
}

// readOld refuses files of older versions of peft that mean something else. Before there was
// use_cayley_neumann the transform was exact. (peft reads such files as if it were on.)
func (c *OftConfig) readOld(data []byte) error {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return err
	}
	_, sized := keys["oft_block_size"]
	_, neumann := keys["use_cayley_neumann"]
	switch {
	case !sized:
		return errors.New(`no "oft_block_size": adapters of peft before 0.14 are of another method`)
	case c.R == 0 && c.OftBlockSize == 0:
		return errors.New("r and oft_block_size are 0, want one of both")
	case neumann && c.UseCayleyNeumann == On && olderThan(c.Version, 0, 18):
		return fmt.Errorf("use_cayley_neumann with peft_version %q: the series was another one before 0.18.0", c.Version)
	case !neumann && c.Version != "" && olderThan(c.Version, 0, 18):
		c.UseCayleyNeumann = Off
	}
	return nil
}

// olderThan reports whether a version of Python's, "0.18.2.dev0@abc", is before major.minor.
func olderThan(version string, major, minor int) bool {
	version, _, _ = strings.Cut(version, "@")
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return true
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	if errA != nil || errB != nil || a < major || a == major && b < minor {
		return true
	}
	first := a == major && b == minor && (len(parts) < 3 || strings.HasPrefix(parts[2], "0"))
	return first && strings.ContainsAny(version, "abcdr") && !strings.Contains(version, "post") // before the release
}

// Attach implements [peft.Config].
func (c OftConfig) Attach(base site.Base) (peft.Adapter, error) {
	c = c.withDefaults()
	return attachRelative("oft", base, c.PeftConfig, c.selection(), DefaultTargets, func(p *planning) (peft.Adapter, error) {
		c.TargetModules, c.ModulesToSave, c.FanInFanOut = p.TargetModules, p.ModulesToSave, p.transposed()
		a := &oft{config: c, targets: p.targets, patterns: p.counts, byPath: map[string]oftLayer{}, byWeight: map[string]oftLayer{}}
		for _, m := range p.targets {
			l, err := c.layer(m)
			if err != nil {
				return nil, err
			}
			a.byPath[m.Path], a.byWeight[peft.OwnWeight(m)] = l, l
		}
		biases, err := trainedBiases(base, c.Bias, p.targets, p.reading)
		if err != nil {
			return nil, err
		}
		if c.Coft {
			return peft.Compose(coft{a}, biases), nil
		}
		return peft.Compose(a, biases), nil
	})
}
