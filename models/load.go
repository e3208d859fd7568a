package models

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"unsafe"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"

	"github.com/gopeft/gopeft/internal/backend"
	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/models/hub"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// Options says how a model is loaded. The zero value opens the best backend
// there is and computes in the dtype that suits it.
type Options struct {
	// Backend names the backend: "go", "xla:cpu", "xla:cuda", ... "": GOMLX_BACKEND,
	// else XLA if a plugin is installed, else Go.
	Backend string
	// On, if not nil, is the open backend to use instead; the model does not close it.
	On compute.Backend
	// DType is the dtype of parameters and computation: Float32, BFloat16 or
	// Float16. Zero: bfloat16 on CUDA, else float32.
	DType dtypes.DType
	// Quantization, if not nil, holds the weights of linear layers in few bits: quant.NF4{},
	// quant.FP4{} or quant.INT8{}. They are quantised one by one while they are loaded, so
	// that the full model never exists. A checkpoint that bitsandbytes has quantised is
	// held as it is, and needs none.
	Quantization quant.Scheme
	// Hub says which revision of a hub id to load and where to keep it.
	Hub hub.Options
}

func first(options []Options) Options {
	if len(options) == 0 {
		return Options{}
	}
	return options[0]
}

// source is a checkpoint's tensors, read lazily.
type source interface {
	Names() []string
	Info(name string) (safetensors.TensorInfo, bool)
	// Bytes are valid until Close or Release.
	Bytes(name string) ([]byte, error)
	// Release says that the tensor's bytes are not needed for now.
	Release(name string)
	Close() error
}

// Load reads a model from a Hugging Face folder, or from the hub (or its cache)
// if nameOrPath is an id such as "HuggingFaceTB/SmolLM2-135M".
//
// Tensors go from the mapped file to the device one by one. A checkpoint that
// does not fit its config.json is a [*LoadError]; an unsupported model_type, or
// an option that changes the mathematics, is an error that names it. At most one
// Options is used.
func Load(ctx context.Context, nameOrPath string, options ...Options) (*Model, error) {
	m, err := load(ctx, nameOrPath, first(options))
	if err != nil {
		return nil, fmt.Errorf("models: load %q: %w", nameOrPath, err)
	}
	return m, nil
}

func load(ctx context.Context, nameOrPath string, options Options) (*Model, error) {
	dir, err := hub.Resolve(ctx, nameOrPath, options.Hub)
	if err != nil {
		return nil, err
	}
	return diskFolder(dir).load(ctx, nameOrPath, options)
}

// FromFS is [Load] from the folder dir of fsys, an embed.FS for example, whose
// weights are in one file.
func FromFS(ctx context.Context, fsys fs.FS, dir string, options ...Options) (*Model, error) {
	f, err := memoryFolder(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("models: load %q: %w", dir, err)
	}
	m, err := f.load(ctx, dir, first(options))
	if err != nil {
		return nil, fmt.Errorf("models: load %q: %w", dir, err)
	}
	return m, nil
}

// newModel opens the backend and makes a model without parameters.
func newModel(arch Architecture, name string, options Options) (*Model, error) {
	m := &Model{arch: arch}
	if err := m.open(arch, name, options); err != nil {
		return nil, err
	}
	m.programs = newPrograms(m)
	return m, nil
}

// open opens the backend for a network without parameters.
func (m *core) open(n network, name string, options Options) error {
	*m = core{
		config: n.Config(), network: n, modules: map[string]site.Module{},
		store: model.NewStore(), nameOrPath: name, backend: options.On,
		scheme: options.Quantization, quantised: map[string]quantisedWeight{},
	}
	if m.scheme != nil {
		if err := checkScheme(n, m.scheme); err != nil {
			return err
		}
	}
	for _, module := range n.Modules() {
		m.modules[module.Path] = module
	}
	if m.backend == nil {
		b, err := backend.Open(options.Backend)
		if err != nil {
			return err
		}
		m.backend, m.closeBackend = b, b.Finalize
	}
	m.recompute = backend.IsCUDA(m.backend)
	if err := m.chooseDType(options.DType); err != nil {
		m.close()
		return err
	}
	return nil
}

func (m *core) chooseDType(wanted dtypes.DType) error {
	m.dtype = wanted
	switch wanted {
	case dtypes.InvalidDType:
		m.dtype = backend.ComputeDType(m.backend)
		return nil
	case dtypes.Float32:
		return nil
	case dtypes.BFloat16, dtypes.Float16:
		return backend.Supports(m.backend, wanted)
	}
	return fmt.Errorf("dtype: wanted Float32, BFloat16 or Float16, got %s", wanted)
}

// upload puts every parameter on the device, one at a time.
func (m *core) upload(ctx context.Context, src source) error {
	for _, p := range m.Parameters() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.uploadTensor(src, p); err != nil {
			return fmt.Errorf("parameter %q: %w", p.Name, err)
		}
	}
	return nil
}

func (m *core) uploadTensor(src source, p site.Parameter) error {
	info, _ := src.Info(p.Name)
	data, err := src.Bytes(p.Name)
	if err != nil {
		return err
	}
	defer src.Release(p.Name)
	if module, ok := readable(m.network)[p.Name]; ok && isQuantised(src, p.Name, info) {
		if m.scheme != nil {
			return ErrQuantised
		}
		stored, err := quant.Read(src, p.Name)
		if err != nil {
			return err
		}
		defer releaseStatistics(src, p.Name)
		return m.setStored(module, stored)
	}
	if module, ok := m.quantises(p); ok {
		values := make([]float32, p.Size())
		if err := safetensors.DecodeFloat32s(values, data, info.DType); err != nil {
			return err
		}
		return m.setQuantised(module, values, info.DType)
	}
	data, err = converted(data, info.DType, p.Size(), fileDType(m.dtype))
	if err != nil {
		return err
	}
	t, err := tensors.FromRaw(m.backend, 0, shapes.Make(m.dtype, p.Shape...), aligned(data, fileDType(m.dtype)))
	if err != nil {
		return err
	}
	return m.setParameter(p.Name, t)
}

func releaseStatistics(src source, weight string) {
	for _, name := range quant.Statistics(src, weight) {
		src.Release(name)
	}
}

// aligned returns data at an address that suits its elements, which an unusual
// header or file system may not give it.
func aligned(data []byte, dtype safetensors.DType) []byte {
	if len(data) == 0 || uintptr(unsafe.Pointer(unsafe.SliceData(data)))%uintptr(dtype.Bits()/8) == 0 {
		return data
	}
	return slices.Clone(data)
}

// setParameter makes the frozen variable of a parameter.
func (m *core) setParameter(name string, t *tensors.Tensor) error {
	v, err := m.store.CreateVariable(site.VariablePath(name), t)
	if err != nil {
		return err
	}
	v.Trainable = false
	return nil
}

// converted returns size elements in another dtype, rounded to nearest even;
// data itself where the dtype is the same.
func converted(data []byte, from safetensors.DType, size int, to safetensors.DType) ([]byte, error) {
	if from == to {
		return data, nil
	}
	const chunk = 1 << 16 // so that only the result has the size of the tensor
	values := make([]float32, min(size, chunk))
	in, out := from.Bits()/8, to.Bits()/8
	result := make([]byte, size*out)
	for start := 0; start < size; start += chunk {
		end := min(start+chunk, size)
		part := values[:end-start]
		if err := safetensors.DecodeFloat32s(part, data[start*in:end*in], from); err != nil {
			return nil, err
		}
		if err := safetensors.EncodeFloat32s(result[start*out:end*out], part, to); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// fileDType is the safetensors name of a compute dtype.
func fileDType(d dtypes.DType) safetensors.DType {
	switch d {
	case dtypes.BFloat16:
		return safetensors.BF16
	case dtypes.Float16:
		return safetensors.F16
	}
	return safetensors.F32
}
