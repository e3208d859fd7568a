package train

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/gomlx/compute/dtypes"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// baseState tells one base from another.
type baseState struct {
	ModelType   string `json:"model_type"`
	Fingerprint string `json:"fingerprint"`
}

const (
	// fingerprintElements are read at both ends of a parameter: 1 KB of float32.
	fingerprintElements = 256
	// fingerprintLimit leaves out parameters that take long to bring from a device.
	fingerprintLimit = 64 << 20
)

var digits = regexp.MustCompile(`[0-9]+`)

// describeBase hashes the names and shapes of all parameters and, of the last one of
// each kind (the last block's, where there are blocks), the values at both ends. They
// are rounded to bfloat16, which a base may be held in on one backend and not on another.
func describeBase(base site.Base) (baseState, error) {
	h := sha256.New()
	parameters := base.Parameters()
	last := map[string]int{}
	for i, p := range parameters {
		fmt.Fprintf(h, "%q %v\n", p.Name, p.Shape)
		last[digits.ReplaceAllString(p.Name, "#")] = i
	}
	for i, p := range parameters {
		if last[digits.ReplaceAllString(p.Name, "#")] != i || p.Size() > fingerprintLimit {
			continue
		}
		ends, err := endsOf(base, p)
		if err != nil {
			return baseState{}, fmt.Errorf("train: fingerprint of the base: parameter %q: %w", p.Name, err)
		}
		h.Write(ends)
	}
	return baseState{base.ModelType(), hex.EncodeToString(h.Sum(nil))}, nil
}

// endsOf returns the first and the last values of a parameter, in bfloat16 if they are
// floats. Of one that lies on a device no copy stays on the host.
func endsOf(base site.Base, p site.Parameter) (ends []byte, err error) {
	err = graphx.Try(func() error {
		v := base.Store().GetVariable(site.VariablePath(p.Name))
		if v == nil {
			return errors.New("the base has no such variable")
		}
		t, err := v.Value()
		if err != nil {
			return err
		}
		wasLocal := t.IsLocal()
		var rounding error
		err = t.ConstBytes(func(data []byte) {
			n := min(len(data), fingerprintElements*len(data)/t.Size())
			for _, end := range [][]byte{data[:n], data[len(data)-n:]} {
				var rounded []byte
				if rounded, rounding = toBrain(end, t.DType()); rounding != nil {
					return
				}
				ends = append(ends, rounded...)
			}
		})
		if !wasLocal && t.IsOnAnyDevice() {
			t.FinalizeLocal()
		}
		return errors.Join(err, rounding)
	})
	return ends, err
}

// toBrain returns floats as bfloat16, and a copy of anything else.
func toBrain(data []byte, dtype dtypes.DType) ([]byte, error) {
	var from safetensors.DType
	switch dtype {
	case dtypes.Float32:
		from = safetensors.F32
	case dtypes.Float16:
		from = safetensors.F16
	case dtypes.Float64:
		from = safetensors.F64
	default:
		return slices.Clone(data), nil
	}
	values := make([]float32, len(data)*8/from.Bits())
	if err := safetensors.DecodeFloat32s(values, data, from); err != nil {
		return nil, err
	}
	out := make([]byte, 2*len(values))
	return out, safetensors.EncodeFloat32s(out, values, safetensors.BF16)
}
