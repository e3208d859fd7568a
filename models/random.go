package models

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/site"
)

// New makes a model with random parameters in memory: matrices from a normal
// distribution of standard deviation initializer_range, norm scales 1 and biases
// 0, as Hugging Face initialises this family.
//
// A parameter's values depend on the seed and its name alone. They are made on the
// host, except that a device with memory of its own makes its large matrices
// itself, by another generator.
func New(ctx context.Context, configJSON []byte, seed uint64, options ...Options) (*Model, error) {
	arch, err := NewArchitecture(configJSON)
	if err != nil {
		return nil, err
	}
	m, err := newModel(arch, "", first(options))
	if err != nil {
		return nil, fmt.Errorf("models: new %s: %w", arch.Config().ModelType, err)
	}
	if err := m.randomize(ctx, seed); err != nil {
		return nil, fmt.Errorf("models: new %s: %w", arch.Config().ModelType, errors.Join(err, m.Close()))
	}
	return m, nil
}

// largeMatrix is the number of elements above which a device makes them itself.
const largeMatrix = 1 << 20

func (m *core) randomize(ctx context.Context, seed uint64) error {
	device := newDeviceNormal(m.backend, m.dtype)
	defer device.close()
	for _, p := range m.Parameters() {
		if err := ctx.Err(); err != nil {
			return err
		}
		var t *tensors.Tensor
		var err error
		if len(p.Shape) > 1 && p.Size() > largeMatrix && !m.backend.HasSharedBuffers() {
			t, err = device.make(p, seed, m.initialStd(p))
		} else {
			t, err = m.hostInitial(p, seed)
		}
		if module, ok := m.quantises(p); ok && err == nil {
			err = m.quantiseTensor(module, t)
		} else if err == nil {
			err = m.setParameter(p.Name, t)
		}
		if err != nil {
			return fmt.Errorf("parameter %q: %w", p.Name, err)
		}
	}
	return nil
}

// quantiseTensor takes a weight that was made on the device.
func (m *core) quantiseTensor(module site.Module, t *tensors.Tensor) error {
	values := make([]float32, t.Size())
	dtype := fileDType(m.dtype)
	var decoding error
	err := t.ConstBytes(func(data []byte) { decoding = safetensors.DecodeFloat32s(values, data, dtype) })
	if err = errors.Join(err, decoding, t.FinalizeAll()); err != nil {
		return err
	}
	return m.setQuantised(module, values, dtype)
}

// parameterSeed mixes a parameter's name into the seed.
func parameterSeed(seed uint64, name string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d/%s", seed, name)
	return h.Sum64()
}

// scaleInitializer is implemented by networks whose norm scales do not all start at 1.
type scaleInitializer interface{ initialScale() float32 }

// stdInitializer is implemented by networks that scale some of their matrices.
type stdInitializer interface {
	initialStd(parameter string) float64
}

func (m *core) initialStd(p site.Parameter) float64 {
	if s, ok := m.network.(stdInitializer); ok {
		return s.initialStd(p.Name)
	}
	return m.config.InitializerRange
}

func (m *core) hostInitial(p site.Parameter, seed uint64) (*tensors.Tensor, error) {
	values := make([]float32, p.Size())
	switch {
	case strings.HasSuffix(p.Name, ".bias"):
	case len(p.Shape) == 1:
		scale := float32(1)
		if s, ok := m.network.(scaleInitializer); ok {
			scale = s.initialScale()
		}
		for i := range values {
			values[i] = scale
		}
	default:
		r := rand.New(rand.NewPCG(seed, parameterSeed(seed, p.Name)))
		for i := range values {
			values[i] = float32(r.NormFloat64() * m.initialStd(p))
		}
	}
	dtype := fileDType(m.dtype)
	data := make([]byte, p.Size()*dtype.Bits()/8)
	if err := safetensors.EncodeFloat32s(data, values, dtype); err != nil {
		return nil, err
	}
	return tensors.FromRaw(m.backend, 0, shapes.Make(m.dtype, p.Shape...), data)
}

// deviceNormal makes normally distributed matrices on the device, with one program
// per shape. The key is an input: XLA would spend minutes folding constants.
type deviceNormal struct {
	backend  compute.Backend
	dtype    dtypes.DType
	programs map[string]*Exec
}

func newDeviceNormal(b compute.Backend, dtype dtypes.DType) *deviceNormal {
	return &deviceNormal{backend: b, dtype: dtype, programs: map[string]*Exec{}}
}

func (d *deviceNormal) close() {
	for _, e := range d.programs {
		e.Finalize()
	}
}

func (d *deviceNormal) make(p site.Parameter, seed uint64, std float64) (*tensors.Tensor, error) {
	shape := shapes.Make(d.dtype, p.Shape...)
	e := d.programs[shape.String()]
	if e == nil {
		var err error
		e, err = NewExec(d.backend, func(key, std *Node) *Node { return normal(key, std, shape) })
		if err != nil {
			return nil, err
		}
		d.programs[shape.String()] = e
	}
	key := parameterSeed(seed, p.Name)
	out, err := e.Call([]uint32{uint32(key), uint32(key >> 32)}, float32(std))
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// normal hashes each element's index with a key, [2] uint32, into two uniform
// numbers and those into a normal one (Box and Muller 1958).
func normal(key, std *Node, shape shapes.Shape) *Node {
	g := key.Graph()
	flat := shapes.Make(dtypes.Uint32, shape.Size())
	index := Iota(g, flat, 0)
	uniform := func(word int) *Node {
		k := BroadcastToDims(Reshape(SliceAxis(key, 0, AxisElem(word))), flat.Dimensions...)
		x := mix(Add(mix(Add(index, k)), k))
		// 24 bits in (0, 1): never 0, whose logarithm is infinite.
		return MulScalar(AddScalar(ConvertDType(BitwiseShiftRightLogicalScalar(x, uint32(8)), dtypes.Float32), 0.5), 0x1p-24)
	}
	radius := Sqrt(MulScalar(Log(uniform(0)), -2))
	x := Mul(radius, Cos(MulScalar(uniform(1), 2*math.Pi)))
	x = Mul(x, BroadcastToDims(std, flat.Dimensions...))
	return Reshape(ConvertDType(x, shape.DType), shape.Dimensions...)
}

// mix is the finaliser of MurmurHash3: every bit of x changes half of the result's.
func mix(x *Node) *Node {
	x = MulScalar(BitwiseXor(x, BitwiseShiftRightLogicalScalar(x, uint32(16))), uint32(0x85ebca6b))
	x = MulScalar(BitwiseXor(x, BitwiseShiftRightLogicalScalar(x, uint32(13))), uint32(0xc2b2ae35))
	return BitwiseXor(x, BitwiseShiftRightLogicalScalar(x, uint32(16)))
}
