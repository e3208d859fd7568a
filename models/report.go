package models

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/safetensors"
	"github.com/gopeft/gopeft/quant"
	"github.com/gopeft/gopeft/site"
)

// LoadReport compares the parameters that an architecture wants with the tensors
// that a checkpoint has.
type LoadReport struct {
	// Loaded counts the parameters that were found with the right shape.
	Loaded int
	// Missing are wanted and not in the checkpoint.
	Missing []string
	// Unexpected are in the checkpoint and not wanted.
	Unexpected []string
	// Mismatched are there with another shape, or with a dtype that is no float.
	Mismatched []Mismatch
	// Ignored are in the checkpoint, not wanted, and known to be harmless.
	Ignored []string
	// Renamed holds, for each parameter that the checkpoint has under another name than
	// the model, that name.
	Renamed map[string]string
	// New are parameters that the checkpoint does not have and that were initialised
	// at random: a classifier's head.
	New []string
}

// Mismatch is a tensor that is not what the architecture wants.
type Mismatch struct {
	Name string
	// Want and Got are dtype and shape, such as "[64 32]" and "F32[32 64]".
	Want, Got string
}

// OK reports whether the checkpoint is exactly what the architecture wants.
func (r *LoadReport) OK() bool {
	return len(r.Missing) == 0 && len(r.Unexpected) == 0 && len(r.Mismatched) == 0
}

// String shows the counts and one example of each difference.
func (r *LoadReport) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d tensors loaded, %d missing, %d unexpected, %d of the wrong shape or dtype",
		r.Loaded, len(r.Missing), len(r.Unexpected), len(r.Mismatched))
	if len(r.Missing) > 0 {
		fmt.Fprintf(&b, "; wanted %q", r.Missing[0])
	}
	if len(r.Unexpected) > 0 {
		name := r.Unexpected[0]
		if len(r.Missing) > 0 {
			name = nearest(r.Missing[0], r.Unexpected)
		}
		fmt.Fprintf(&b, "; found %q", name)
	}
	if len(r.Mismatched) > 0 {
		m := r.Mismatched[0]
		fmt.Fprintf(&b, "; %q: wanted %s, got %s", m.Name, m.Want, m.Got)
	}
	return b.String()
}

// nearest returns the candidate with the longest common suffix with name: what
// differs between two spellings of a tensor is mostly a prefix.
func nearest(name string, candidates []string) string {
	best, bestLength := candidates[0], -1
	for _, c := range candidates {
		n := 0
		for n < len(c) && n < len(name) && c[len(c)-1-n] == name[len(name)-1-n] {
			n++
		}
		if n > bestLength {
			best, bestLength = c, n
		}
	}
	return best
}

// LoadError is the error of a checkpoint that does not fit its config.json.
type LoadError struct {
	// Path is the folder.
	Path string
	// Report says what differs.
	Report LoadReport
}

// Error shows the counts, and one wanted and one found name side by side.
func (e *LoadError) Error() string {
	return fmt.Sprintf("models: %s: the checkpoint does not fit its config.json: %s", e.Path, e.Report.String())
}

// compare fills a report without reading any tensor.
func compare(arch network, src source) LoadReport {
	var r LoadReport
	if s, ok := src.(*renamedSource); ok {
		r.Renamed = s.stored
	}
	wanted := map[string]bool{}
	linears := readable(arch)
	for _, p := range arch.Parameters() {
		wanted[p.Name] = true
		info, ok := src.Info(p.Name)
		_, linear := linears[p.Name]
		switch {
		case ok && linear && isQuantised(src, p.Name, info):
			// Its shape is checked with its statistics, when it is read.
			r.Loaded++
			for _, name := range quant.Statistics(src, p.Name) {
				wanted[name] = true
			}
		case !ok:
			r.Missing = append(r.Missing, p.Name)
		case !slices.Equal(info.Shape, p.Shape):
			r.Mismatched = append(r.Mismatched, mismatch(p, info))
		case !isFloat(info.DType):
			r.Mismatched = append(r.Mismatched, mismatch(p, info))
		default:
			r.Loaded++
		}
	}
	for _, name := range src.Names() {
		if wanted[name] {
			continue
		}
		if arch.Ignorable(name) || isTiedCopy(arch, src, name) {
			r.Ignored = append(r.Ignored, name)
		} else {
			r.Unexpected = append(r.Unexpected, name)
		}
	}
	return r
}

// isQuantised reports whether bitsandbytes has quantised a weight of the checkpoint.
func isQuantised(src source, name string, info safetensors.TensorInfo) bool {
	return !isFloat(info.DType) && quant.IsQuantised(src, name)
}

func mismatch(p site.Parameter, info safetensors.TensorInfo) Mismatch {
	want := fmt.Sprint(p.Shape)
	if !isFloat(info.DType) {
		want = "F64, F32, F16 or BF16 " + want
	}
	return Mismatch{Name: p.Name, Want: want, Got: fmt.Sprintf("%s%v", info.DType, info.Shape)}
}

func isFloat(d safetensors.DType) bool {
	return d == safetensors.F64 || d == safetensors.F32 || d == safetensors.F16 || d == safetensors.BF16
}

// isTiedCopy reports whether a tensor is a second copy of the one its module is
// tied to, as some programs write. A copy with other values is a head of its own
// that config.json denies, and so is unexpected.
func isTiedCopy(arch network, src source, name string) bool {
	for _, m := range arch.Modules() {
		if m.TiedTo == "" || name != m.Path+".weight" {
			continue
		}
		own, ok1 := src.Info(name)
		tied, ok2 := src.Info(m.Weight())
		if !ok1 || !ok2 || own.DType != tied.DType || !slices.Equal(own.Shape, tied.Shape) {
			return false
		}
		a, err1 := src.Bytes(name)
		b, err2 := src.Bytes(m.Weight())
		same := err1 == nil && err2 == nil && string(a) == string(b)
		src.Release(name)
		src.Release(m.Weight())
		return same
	}
	return false
}
