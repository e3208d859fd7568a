package peft

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/graphx"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// baseValues copies a parameter of the base to the host as float32. dtype is the
// one that the base holds it in.
func baseValues(base site.Base, p site.Parameter) (values []float32, dtype dtypes.DType, err error) {
	values = make([]float32, p.Size())
	dtype, err = readBase(base, p, values)
	return values, dtype, err
}

// BaseValues copies a parameter of the base to the host as float32, row-major as stored:
// for initial values that derive from it.
func BaseValues(base site.Base, p site.Parameter) ([]float32, error) {
	values, _, err := baseValues(base, p)
	if err != nil {
		return nil, fmt.Errorf("peft: reading the base: %w", err)
	}
	return values, nil
}

// readBase copies a parameter of the base into values.
func readBase(base site.Base, p site.Parameter, values []float32) (dtype dtypes.DType, err error) {
	store := base.Store()
	if store == nil {
		return dtype, errors.New("the base has no values")
	}
	if r, ok := base.(site.Reader); ok {
		if dtype, ok, err := r.ReadParameter(p.Name, values); ok || err != nil {
			return dtype, err
		}
	}
	err = graphx.Try(func() error {
		v := store.GetVariable(site.VariablePath(p.Name))
		if v == nil {
			return fmt.Errorf("the base has no parameter %q", p.Name)
		}
		dtype = v.DType()
		// A weight of a wrapped model may have more axes than the matrix that it is used as.
		_, wrapped := base.(*WrappedModel)
		if !slices.Equal(v.Shape().Dimensions, p.Shape) && !(wrapped && v.Shape().Size() == p.Size()) {
			return fmt.Errorf("parameter %q of the base: want shape %v, got %v", p.Name, p.Shape, v.Shape().Dimensions)
		}
		t, err := v.Value()
		if err != nil {
			return err
		}
		return copyFloats(t, values)
	})
	return dtype, err
}

// fileDTypes are the float dtypes of a base, as a file spells them.
var fileDTypes = map[dtypes.DType]safetensors.DType{
	dtypes.Float32: safetensors.F32, dtypes.Float16: safetensors.F16, dtypes.BFloat16: safetensors.BF16, dtypes.Float64: safetensors.F64,
}

// copying lets one reader of tensors in at a time, so that the host holds one copy at most.
var copying sync.Mutex

// withBytes gives f the values of a tensor, row-major. One that lies on a device stays as it
// is: programs may be reading it, so that it must not be given a copy on the host.
func withBytes(t *tensors.Tensor, f func(data []byte) error) error {
	copying.Lock()
	defer copying.Unlock()
	if !t.IsLocal() && t.IsOnAnyDevice() {
		flat, err := deviceValues(t)
		if err != nil {
			return err
		}
		return f(dtypes.UnsafeByteSliceFromAny(flat))
	}
	var err error
	access := t.ConstBytes(func(data []byte) { err = f(data) })
	return errors.Join(access, err)
}

// copyFloats copies a tensor of any float dtype into values.
func copyFloats(t *tensors.Tensor, values []float32) error {
	dtype, ok := fileDTypes[t.DType()]
	if !ok {
		return fmt.Errorf("dtype %s is no float", t.DType())
	}
	return withBytes(t, func(data []byte) error { return safetensors.DecodeFloat32s(values, data, dtype) })
}

// deviceValues copies a tensor from its device and leaves the tensor as it is.
func deviceValues(t *tensors.Tensor) (any, error) {
	backend, err := t.Backend()
	if err != nil {
		return nil, err
	}
	device, err := t.Device()
	if err != nil {
		return nil, err
	}
	buffer, err := t.Buffer(backend, device)
	if err != nil {
		return nil, err
	}
	flat := dtypes.MakeAnySlice(t.DType(), t.Size())
	return flat, buffer.ToFlatData(flat)
}

// settle puts values on the backend before they are published: GoMLX would do it at their
// first use, while others look at them. Without a backend they stay on the host.
func settle(on compute.Backend, lists ...[]*tensors.Tensor) error {
	for _, list := range lists {
		for i, t := range list {
			if t == nil {
				return fmt.Errorf("peft: adapter values: tensor %d is nil", i)
			}
			if on == nil {
				continue
			}
			if err := t.MaterializeOnDevice(on, true, 0); err != nil {
				return fmt.Errorf("peft: adapter values: %w", err)
			}
		}
	}
	return nil
}

// equalRounded reports whether theirs rounds to ours in the dtype that ours were stored in.
func equalRounded(ours, theirs []float32, dtype dtypes.DType) bool {
	fileDType, ok := fileDTypes[dtype]
	if !ok {
		return false
	}
	size, err := fileDType.Size([]int{len(theirs)})
	if err != nil {
		return false
	}
	stored := make([]byte, size)
	if safetensors.EncodeFloat32s(stored, theirs, fileDType) != nil || safetensors.DecodeFloat32s(theirs, stored, fileDType) != nil {
		return false
	}
	return slices.Equal(ours, theirs)
}
