package adapters

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/gopeft/gopeft/internal/pyjson"
)

// ReductionFactor is what the features of a layer are divided by to give the width of the
// bottleneck. The zero value is 16 everywhere.
type ReductionFactor struct {
	// Default is the factor of all blocks that Layers does not name.
	Default float64
	// Layers gives blocks, counted from 0, factors of their own.
	Layers map[int]float64
}

func (r ReductionFactor) isZero() bool { return r.Default == 0 && len(r.Layers) == 0 }

// of returns the factor of a block, 0 if there is none.
func (r ReductionFactor) of(layer int) float64 {
	if f, ok := r.Layers[layer]; ok {
		return f
	}
	return r.Default
}

// width is the width of a bottleneck on so many features: Python's features // factor,
// at least 1.
func (r ReductionFactor) width(features, layer int) (int, error) {
	factor := r.of(layer)
	if factor == 0 {
		return 0, fmt.Errorf("reduction_factor has neither a value for layer %d nor a default", layer)
	}
	n := float64(features)
	// Python's floor of the exact quotient, where n/factor could be rounded up to a whole number.
	width := math.Floor((n - math.Mod(n, factor)) / factor)
	if rest := (n-math.Mod(n, factor))/factor - width; rest > 0.5 {
		width++
	}
	if width > n {
		return 0, fmt.Errorf("reduction_factor %g gives a bottleneck of %g features, wider than the layer's %d", factor, width, features)
	}
	return max(1, int(width)), nil
}

func (r ReductionFactor) check() error {
	if r.isZero() {
		return nil
	}
	check := func(f float64) error {
		if !(f > 0) || !isFinite(f) {
			return fmt.Errorf("reduction_factor is %v, want a number greater than 0", f)
		}
		return nil
	}
	if r.Default != 0 {
		if err := check(r.Default); err != nil {
			return err
		}
	}
	for _, layer := range slices.Sorted(maps.Keys(r.Layers)) {
		if layer < 0 {
			return fmt.Errorf("reduction_factor: layer %d is negative", layer)
		}
		if err := check(r.Layers[layer]); err != nil {
			return fmt.Errorf("layer %d: %w", layer, err)
		}
	}
	return nil
}

// MarshalJSON writes a number, or an object from blocks and "default" to numbers.
func (r ReductionFactor) MarshalJSON() ([]byte, error) {
	if len(r.Layers) == 0 {
		return json.Marshal(r.Default)
	}
	object := map[string]float64{}
	for layer, factor := range r.Layers {
		object[strconv.Itoa(layer)] = factor
	}
	if r.Default != 0 {
		object["default"] = r.Default
	}
	return json.Marshal(object)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *ReductionFactor) UnmarshalJSON(data []byte) error {
	*r = ReductionFactor{}
	if !bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		var factor *float64
		if err := json.Unmarshal(data, &factor); err != nil || factor == nil {
			return fmt.Errorf("reduction_factor: want a number or an object of numbers, got %s", data)
		}
		return r.set(&r.Default, *factor)
	}
	object, err := pyjson.Parse(data)
	if err != nil {
		return fmt.Errorf("reduction_factor: %w", err)
	}
	if len(object) == 0 {
		return errors.New("reduction_factor is an empty object")
	}
	for key, raw := range object {
		var factor float64
		if err := json.Unmarshal(raw, &factor); err != nil {
			return fmt.Errorf("reduction_factor of layer %q: want a number, got %s", key, raw)
		}
		if key == "default" {
			if err := r.set(&r.Default, factor); err != nil {
				return err
			}
			continue
		}
		layer, err := strconv.Atoi(key)
		if err != nil || strconv.Itoa(layer) != key {
			return fmt.Errorf(`reduction_factor: %q is neither a layer's number nor "default"`, key)
		}
		if r.Layers == nil {
			r.Layers = map[int]float64{}
		}
		r.Layers[layer] = factor
	}
	return nil
}

// set refuses a factor of a file that would be taken for none.
func (r *ReductionFactor) set(to *float64, factor float64) error {
	if factor == 0 {
		return errors.New("reduction_factor is 0, want a number greater than 0")
	}
	*to = factor
	return nil
}

// Scaling is what an adapter's result is multiplied by. The zero value is 1.
type Scaling struct {
	// Factor is a fixed number. 0 means 1.
	Factor float64
	// Learned trains it, starting from 1; there is no Factor then.
	Learned LearnedScaling
}

// LearnedScaling is a kind of scaling that is trained.
type LearnedScaling string

const (
	// ScalingLearned is one number an adapter module.
	ScalingLearned LearnedScaling = "learned"
	// ScalingChannel is one number a feature.
	ScalingChannel LearnedScaling = "channel"
)

// factor is Factor with its default.
func (s Scaling) factor() float64 {
	if s.Factor == 0 {
		return 1
	}
	return s.Factor
}

// size is the number of trained values for a number of features.
func (s Scaling) size(features int) int {
	switch s.Learned {
	case ScalingLearned:
		return 1
	case ScalingChannel:
		return features
	}
	return 0
}

func (s Scaling) check() error {
	switch {
	case !isFinite(s.Factor):
		return fmt.Errorf("scaling is %v, want a finite number", s.Factor)
	case s.Learned != "" && s.Learned != ScalingLearned && s.Learned != ScalingChannel:
		return fmt.Errorf(`scaling is %q, want a number, "learned" or "channel"`, string(s.Learned))
	case s.Learned != "" && s.Factor != 0:
		return fmt.Errorf("scaling is both %v and %q", s.Factor, string(s.Learned))
	}
	return nil
}

// MarshalJSON writes a float or a name.
func (s Scaling) MarshalJSON() ([]byte, error) {
	if s.Learned != "" {
		return json.Marshal(string(s.Learned))
	}
	return json.Marshal(pyjson.Float(s.factor()))
}

// UnmarshalJSON reads a number or a name.
func (s *Scaling) UnmarshalJSON(data []byte) error {
	*s = Scaling{}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte(`"`)) {
		if err := json.Unmarshal(data, (*string)(&s.Learned)); err != nil || s.Learned != "" {
			return err
		}
		return fmt.Errorf(`scaling: want a number, "learned" or "channel", got %s`, data)
	}
	var factor *float64
	if err := json.Unmarshal(data, &factor); err != nil || factor == nil {
		return fmt.Errorf(`scaling: want a number, "learned" or "channel", got %s`, data)
	}
	if *factor == 0 {
		return errors.New("scaling is 0: the adapter would change nothing")
	}
	s.Factor = *factor
	return nil
}

// BottleneckInit says how the layers of an adapter start. Biases are 0 and norms do not scale.
type BottleneckInit string

const (
	// InitBert draws from N(0, 0.02²): a fresh adapter changes the model a little.
	InitBert BottleneckInit = ""
	// InitMAM draws the first layer as PyTorch draws a linear layer and makes the second 0: a
	// fresh adapter without LnAfter changes nothing.
	InitMAM BottleneckInit = "mam_adapter"
	// InitHoulsby draws from N(0, 0.01²), cut off at two standard deviations.
	InitHoulsby BottleneckInit = "houlsby"
)

func (i BottleneckInit) check() error {
	switch i {
	case InitBert, InitMAM, InitHoulsby:
		return nil
	}
	return fmt.Errorf(`init_weights is %q, want "bert", "mam_adapter" or "houlsby"`, string(i))
}

// MarshalJSON writes the name.
func (i BottleneckInit) MarshalJSON() ([]byte, error) {
	if i == InitBert {
		return []byte(`"bert"`), nil
	}
	return json.Marshal(string(i))
}

// UnmarshalJSON reads the name.
func (i *BottleneckInit) UnmarshalJSON(data []byte) error {
	var name string
	if err := json.Unmarshal(data, &name); err != nil {
		return fmt.Errorf("init_weights: want a name, got %s", data)
	}
	switch *i = BottleneckInit(name); name {
	case "bert":
		*i = InitBert
	case "":
		return fmt.Errorf(`init_weights: want "bert", "mam_adapter" or "houlsby", got %s`, data)
	}
	return nil
}

// Residual says what a sequential adapter's result is added to.
type Residual string

const (
	// ResidualBeforeNorm is the sublayer's output as it is. (true in AdapterHub)
	ResidualBeforeNorm Residual = ""
	// ResidualAfterNorm is what the adapter reads: with OriginalLnBefore, that after the block's
	// residual and norm. (false in AdapterHub)
	ResidualAfterNorm Residual = "false"
	// ResidualPostAdd is the sum of the sublayer's output and the block's residual, before the
	// norm. It needs OriginalLnBefore.
	ResidualPostAdd Residual = "post_add"
)

func (r Residual) check() error {
	switch r {
	case ResidualBeforeNorm, ResidualAfterNorm, ResidualPostAdd:
		return nil
	}
	return fmt.Errorf(`residual_before_ln is %q, want true, false or "post_add"`, string(r))
}

// MarshalJSON writes true, false or a name.
func (r Residual) MarshalJSON() ([]byte, error) {
	switch r {
	case ResidualBeforeNorm, ResidualAfterNorm:
		return json.Marshal(r == ResidualBeforeNorm)
	}
	return json.Marshal(string(r))
}

// UnmarshalJSON reads true, false or "post_add".
func (r *Residual) UnmarshalJSON(data []byte) error {
	switch text := string(bytes.TrimSpace(data)); text {
	case "true":
		*r = ResidualBeforeNorm
	case "false":
		*r = ResidualAfterNorm
	case `"post_add"`:
		*r = ResidualPostAdd
	default:
		return fmt.Errorf(`residual_before_ln: want true, false or "post_add", got %s`, text)
	}
	return nil
}
