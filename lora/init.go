package lora

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
)

// Init is an initialisation of A and B. Those that take a product out of the base's
// weight leave the base alone here and are saved as a plain LoRA of twice the rank, see
// residual.go.
type Init string

const (
	// InitDefault draws A from U(-1/sqrt(in), 1/sqrt(in)) and sets B to zero, so that
	// a new adapter changes nothing. (true in peft)
	InitDefault Init = ""
	// InitGaussian draws A from N(0, 1/r²) and sets B to zero.
	InitGaussian Init = "gaussian"
	// InitRandom draws both, as PyTorch initialises linear layers: for tests, as a
	// new adapter then changes the model. (false in peft)
	InitRandom Init = "false"
	// InitOrthogonal draws A and B whose product is zero though neither is, see orthogonal.go.
	InitOrthogonal Init = "orthogonal"
	// InitPissa starts at the principal singular vectors of the weight, see pissa.go. The
	// exact decomposition takes long for large weights; [InitPissaNiter] is quick.
	InitPissa Init = "pissa"
	// InitOlora starts at a QR decomposition of the weight, see olora.go.
	InitOlora Init = "olora"
	// InitLoftq starts at what quantising the weight loses, see loftq.go and
	// [LoraConfig].LoftqConfig.
	InitLoftq Init = "loftq"
	// InitEva starts A at the principal components of a module's inputs: see [CalibrateEVA].
	InitEva Init = "eva"
	// InitCorda starts at a decomposition of the weight that is weighted by a module's
	// inputs: see [CalibrateCorDA].
	InitCorda Init = "corda"
)

const pissaNiter = "pissa_niter_"

// InitPissaNiter is [InitPissa] with a randomised decomposition of n subspace iterations;
// 16 are nearly exact.
func InitPissaNiter(n int) Init { return Init(pissaNiter + strconv.Itoa(n)) }

// niter returns the iterations of [InitPissaNiter].
func (i Init) niter() (n int, ok bool) {
	digits, ok := strings.CutPrefix(string(i), pissaNiter)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 0 && strconv.Itoa(n) == digits
}

// residual reports whether the initial product is taken out of the weight.
func (i Init) residual() bool {
	_, randomised := i.niter()
	return randomised || slices.Contains([]Init{InitPissa, InitOlora, InitLoftq, InitCorda}, i)
}

// calibrated reports whether the initial values come from data.
func (i Init) calibrated() bool { return i == InitEva || i == InitCorda }

// MarshalJSON writes true, false or the name.
func (i Init) MarshalJSON() ([]byte, error) {
	switch i {
	case InitDefault:
		return []byte("true"), nil
	case InitRandom:
		return []byte("false"), nil
	}
	return json.Marshal(string(i))
}

// UnmarshalJSON reads null, true, false or a name.
func (i *Init) UnmarshalJSON(data []byte) error {
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		*i = InitDefault
	case bool:
		*i = InitDefault
		if !v {
			*i = InitRandom
		}
	case string:
		*i = Init(v)
	default:
		return fmt.Errorf("init_lora_weights: want true, false or a name, got %s", data)
	}
	return nil
}

// checkInit reports an initialisation that does not exist or does not fit the other options.
func (c LoraConfig) checkInit() error {
	init := c.InitLoraWeights
	_, randomised := init.niter()
	known := []Init{InitDefault, InitGaussian, InitRandom, InitOrthogonal, InitPissa, InitOlora, InitLoftq, InitEva, InitCorda}
	switch {
	case !randomised && !slices.Contains(known, init):
		return fmt.Errorf(`init_lora_weights %q is not supported, want the default, "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "loftq", "eva", "corda" or "false"`, string(init))
	case c.LoraBias && init != InitDefault && init != InitRandom:
		return fmt.Errorf("lora_bias is only supported with init_lora_weights true or false, got %q", string(init))
	case c.LoraBias && c.UseDora:
		return fmt.Errorf("lora_bias is not supported with use_dora")
	case init.calibrated() && !c.Reading() && c.calibration == nil:
		return fmt.Errorf("init_lora_weights %q needs data: use the configuration that Calibrate%s returns", string(init), map[Init]string{InitEva: "EVA", InitCorda: "CorDA"}[init])
	case init == InitLoftq && !c.Reading():
		return c.LoftqConfig.check()
	case c.Reading() && (init == InitLoftq || init == InitCorda):
		// What peft took out of the base does not follow from the base and the file.
		return fmt.Errorf("init_lora_weights %q is not supported in a file: the adapter belongs to a base that was changed when it was made; "+
			"save it with peft's conversion (path_initial_model_for_weight_conversion)", string(init))
	case c.Reading():
		return nil
	}
	return c.checkConversion()
}

// layerParams returns A and B of one target with their initial values, and what constants
// belong to them.
func (c LoraConfig) layerParams(l layer, s *starts) ([]peft.Param, error) {
	init := c.InitLoraWeights
	special := init != InitDefault && init != InitGaussian && init != InitRandom
	switch {
	case !special, l.Kind == site.Embedding && init != InitLoftq, c.Reading() && !init.residual():
		return l.params(init), nil // as in peft, an embedding starts as by default
	case l.Kind != site.Linear:
		return nil, fmt.Errorf("init_lora_weights %q is for linear layers, not for target module %q of kind %s", string(init), l.Path, l.Kind)
	case init == InitOrthogonal:
		return l.orthogonalParams()
	case init == InitEva:
		return l.evaParams(c.calibration)
	}
	return l.residualParams(s), nil
}
