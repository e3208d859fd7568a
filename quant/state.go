package quant

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/pyjson"
	"github.com/gopeft/gopeft/internal/safetensors"
)

// The tensors that bitsandbytes stores a weight as, behind the weight's own name, which
// holds the codes as U8 [bytes, 1].
const (
	suffixAbsmax       = ".absmax"
	suffixMap          = ".quant_map"
	suffixNestedAbsmax = ".nested_absmax"
	suffixNestedMap    = ".nested_quant_map"
	suffixState        = ".quant_state.bitsandbytes__"
)

// state is what the quant_state tensor holds as JSON.
type state struct {
	QuantType       Type    `json:"quant_type"`
	BlockSize       int     `json:"blocksize"`
	DType           string  `json:"dtype"`
	Shape           []int   `json:"shape"`
	NestedBlockSize int     `json:"nested_blocksize"`
	NestedDType     string  `json:"nested_dtype"`
	NestedOffset    float64 `json:"nested_offset"`
}

// torchDTypes are torch's names of the dtypes of weights.
var torchDTypes = map[string]safetensors.DType{"float32": safetensors.F32, "float16": safetensors.F16, "bfloat16": safetensors.BF16}

// Statistics lists the tensors of a checkpoint that a quantised weight has besides its codes.
func Statistics(src Source, weight string) []string {
	var names []string
	add := func(name string) {
		if _, ok := src.Info(name); ok {
			names = append(names, name)
		}
	}
	for _, suffix := range []string{suffixAbsmax, suffixMap, suffixNestedAbsmax, suffixNestedMap} {
		add(weight + suffix)
	}
	for t := range codes4 {
		add(weight + suffixState + string(t))
	}
	add(moduleOf(weight) + arrayScales)
	add(moduleOf(weight) + weightFormat)
	return names
}

// Source is a checkpoint's tensors.
type Source interface {
	Info(name string) (safetensors.TensorInfo, bool)
	Bytes(name string) ([]byte, error)
}

// IsQuantised reports whether bitsandbytes has quantised a weight of a checkpoint.
func IsQuantised(src Source, weight string) bool {
	_, _, ok := stateName(src, weight)
	return ok || isInt8(src, weight)
}

func isInt8(src Source, weight string) bool {
	codes, ok := src.Info(weight)
	_, scaled := src.Info(moduleOf(weight) + arrayScales)
	return ok && scaled && codes.DType == safetensors.I8
}

func stateName(src Source, weight string) (string, Type, bool) {
	for t := range codes4 {
		name := weight + suffixState + string(t)
		if _, ok := src.Info(name); ok {
			return name, t, true
		}
	}
	return "", "", false
}

// Read reads a weight that bitsandbytes has quantised. The result holds the codes where the
// checkpoint has them, without a copy, so it lives no longer than they do. Codes and
// statistics that do not fit one another are errors.
func Read(src Source, weight string) (Stored, error) {
	var s Stored
	var err error
	if isInt8(src, weight) {
		s, err = read8(src, weight)
	} else {
		s, err = read(src, weight)
	}
	if err != nil {
		return nil, fmt.Errorf("quant: reading %q: %w", weight, err)
	}
	return s, nil
}

// read8 reads codes and scales of rows. The dtype that the weight was made from is not
// stored: float16, as the library wants it.
func read8(src Source, weight string) (*Tensor8, error) {
	info, _ := src.Info(weight)
	codes, err := bytesOf(src, weight, safetensors.I8)
	if err != nil {
		return nil, err
	}
	scales, err := floatsOf(src, moduleOf(weight)+arrayScales)
	if err != nil {
		return nil, err
	}
	if name := moduleOf(weight) + weightFormat; len(scales) > 0 {
		if format, err := bytesOf(src, name, safetensors.U8); err == nil && (len(format) != 1 || format[0] != 0) {
			return nil, fmt.Errorf("%s is %v, want 0: codes in rows", name, format)
		}
	}
	t := &Tensor8{Shape: slices.Clone(info.Shape), DType: safetensors.F16, Codes: castBytes[int8](codes), SCB: scales}
	return t, t.check()
}

func read(src Source, weight string) (*Tensor4, error) {
	name, kind, ok := stateName(src, weight)
	if !ok {
		return nil, errors.New("it has no quant_state")
	}
	data, err := bytesOf(src, name, safetensors.U8)
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t := &Tensor4{FourBit: FourBit{Type: s.QuantType, BlockSize: s.BlockSize}, Shape: s.Shape, DType: torchDTypes[s.DType]}
	switch {
	case s.QuantType != kind:
		return nil, fmt.Errorf("%s says quant_type %q", name, s.QuantType)
	case t.DType == "":
		return nil, fmt.Errorf("%s: dtype %q, want float32, float16 or bfloat16", name, s.DType)
	case s.BlockSize == 0:
		return nil, fmt.Errorf("%s has no blocksize", name)
	}
	if err := checkShape(s.Shape); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if t.Packed, err = bytesOf(src, weight, safetensors.U8); err != nil {
		return nil, err
	}
	if _, nested := src.Info(weight + suffixNestedAbsmax); nested {
		err = t.readNested(src, weight, s)
	} else {
		t.Absmax, err = floatsOf(src, weight+suffixAbsmax)
	}
	if err != nil {
		return nil, err
	}
	if err := checkLevels(src, weight+suffixMap, codes4[kind].levels[:]); err != nil {
		return nil, err
	}
	return t, t.check()
}

// maxElements is beyond any real weight.
const maxElements = 1 << 40

func checkShape(shape []int) error {
	size := 1
	for _, d := range shape {
		if d <= 0 || d > maxElements/size {
			return fmt.Errorf("shape %v is not that of a weight", shape)
		}
		size *= d
	}
	if len(shape) == 0 {
		return errors.New("it has no shape")
	}
	return nil
}

func (t *Tensor4) readNested(src Source, weight string, s state) (err error) {
	t.DoubleQuant = true
	t.Nested = &Nested{BlockSize: s.NestedBlockSize, Offset: float32(s.NestedOffset)}
	if s.NestedDType != "float32" {
		return fmt.Errorf("nested_dtype %q, want float32", s.NestedDType)
	}
	if t.Nested.Codes, err = bytesOf(src, weight+suffixAbsmax, safetensors.U8); err != nil {
		return err
	}
	if t.Nested.Absmax, err = floatsOf(src, weight+suffixNestedAbsmax); err != nil {
		return err
	}
	code, err := floatsOf(src, weight+suffixNestedMap)
	if err != nil {
		return err
	}
	if len(code) != len(t.Nested.Code) {
		return fmt.Errorf("%s has %d values, want 256", weight+suffixNestedMap, len(code))
	}
	copy(t.Nested.Code[:], code)
	return nil
}

// checkLevels refuses a table of levels that is not the format's.
func checkLevels(src Source, name string, want []float32) error {
	got, err := floatsOf(src, name)
	if err != nil {
		return err
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("%s is not the table of the format: got %v", name, got)
	}
	return nil
}

func bytesOf(src Source, name string, dtype safetensors.DType) ([]byte, error) {
	info, ok := src.Info(name)
	if !ok {
		return nil, fmt.Errorf("there is no tensor %q", name)
	}
	if info.DType != dtype {
		return nil, fmt.Errorf("tensor %q has dtype %s, want %s", name, info.DType, dtype)
	}
	return src.Bytes(name)
}

func floatsOf(src Source, name string) ([]float32, error) {
	data, err := bytesOf(src, name, safetensors.F32)
	if err != nil {
		return nil, err
	}
	values := floatsFrom(data)
	if i := slices.IndexFunc(values, notFinite); i >= 0 {
		return nil, fmt.Errorf("tensor %q holds %v at element %d", name, values[i], i)
	}
	return values, nil
}

// Tensors returns the tensors that bitsandbytes stores the weight of that name as.
func (t *Tensor4) Tensors(weight string) ([]safetensors.Tensor, error) {
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("quant: writing %q: %w", weight, err)
	}
	u8 := func(name string, data []byte, shape ...int) safetensors.Tensor {
		return safetensors.Tensor{Name: name, DType: safetensors.U8, Shape: shape, Bytes: data}
	}
	f32 := func(name string, values []float32) safetensors.Tensor {
		a := floatArray(name, values)
		return safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: a.Shape, Bytes: a.Data}
	}
	levels := codes4[t.Type].levels
	list := []safetensors.Tensor{u8(weight, t.Packed, len(t.Packed), 1), f32(weight+suffixMap, levels[:])}
	if n := t.Nested; n != nil {
		list = append(list, u8(weight+suffixAbsmax, n.Codes, len(n.Codes)), f32(weight+suffixNestedAbsmax, n.Absmax), f32(weight+suffixNestedMap, n.Code[:]))
	} else {
		list = append(list, f32(weight+suffixAbsmax, t.Absmax))
	}
	text := t.stateJSON()
	return append(list, u8(weight+suffixState+string(t.Type), text, len(text))), nil
}

// stateJSON is quant_state as Python's json.dumps writes it.
func (t *Tensor4) stateJSON() []byte {
	var dtype string
	for name, d := range torchDTypes {
		if d == t.DType {
			dtype = name
		}
	}
	shape := strings.Join(strings.Fields(fmt.Sprint(t.Shape)), ", ")
	text := fmt.Sprintf(`{"quant_type": %q, "blocksize": %d, "dtype": %q, "shape": %s`, t.Type, t.block(), dtype, shape)
	if n := t.Nested; n != nil {
		offset, _ := pyjson.Float(n.Offset).MarshalJSON() // it is finite, see check
		text += fmt.Sprintf(`, "nested_blocksize": %d, "nested_dtype": "float32", "nested_offset": %s`, n.BlockSize, offset)
	}
	return []byte(text + "}")
}
