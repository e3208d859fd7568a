package peft

import (
	"fmt"
	"strings"
)

// LoadReport compares the tensors that an adapter has with those of a file, by
// names without the prefix "base_model.model.".
type LoadReport struct {
	// Loaded were found with the right shape.
	Loaded []string
	// Missing are wanted and not in the file.
	Missing []string
	// Unexpected are in the file and not wanted.
	Unexpected []string
	// Mismatched are in the file with another shape, or a dtype that is no float.
	Mismatched []Mismatch
	// Copies are weights of the base that peft saved along (embeddings, if they are
	// targets) and that equal the base's: nothing is lost by not loading them.
	Copies []string
}

// and joins the reports of two files.
func (r LoadReport) and(more LoadReport) LoadReport {
	return LoadReport{
		Loaded: append(r.Loaded, more.Loaded...), Missing: append(r.Missing, more.Missing...), Unexpected: append(r.Unexpected, more.Unexpected...),
		Mismatched: append(r.Mismatched, more.Mismatched...), Copies: append(r.Copies, more.Copies...),
	}
}

// Mismatch is a tensor of a file that does not fit.
type Mismatch struct {
	Name      string
	Want, Got []int
	// DType is the file's, "F32".
	DType string
}

// String tells the tensor's name, the shape wanted and the shape found.
func (m Mismatch) String() string {
	return fmt.Sprintf("%q: want shape %v, got %s %v", m.Name, m.Want, m.DType, m.Got)
}

// LoadError is the error of an adapter's file that does not fit its configuration
// and the base.
type LoadError struct {
	Dir    string
	Report LoadReport
}

// Error names the number and the first of each kind of difference; if nothing
// fits, one wanted and one found name.
func (e *LoadError) Error() string {
	return fmt.Sprintf("peft: load adapter %q: %s", e.Dir, e.Report)
}

// String is one line: the number of tensors loaded, or the number and the first of each
// kind of difference.
func (r LoadReport) String() string {
	var parts []string
	switch {
	case r.ok() && len(r.Copies) > 0:
		return fmt.Sprintf("%d tensors loaded, %d copies of the base's left", len(r.Loaded), len(r.Copies))
	case r.ok():
		return fmt.Sprintf("%d tensors loaded", len(r.Loaded))
	case len(r.Loaded) == 0 && len(r.Missing) > 0 && len(r.Unexpected) > 0:
		parts = append(parts, fmt.Sprintf("no tensor of the file fits the base: want names like %q, the file has names like %q",
			r.Missing[0], r.Unexpected[0]))
	default:
		if len(r.Missing) > 0 {
			parts = append(parts, fmt.Sprintf("%d tensors missing, first %q", len(r.Missing), r.Missing[0]))
		}
		if len(r.Unexpected) > 0 {
			parts = append(parts, fmt.Sprintf("%d tensors unexpected, first %q", len(r.Unexpected), r.Unexpected[0]))
		}
	}
	if len(r.Mismatched) > 0 {
		parts = append(parts, fmt.Sprintf("%d tensors do not fit, first %s", len(r.Mismatched), r.Mismatched[0]))
	}
	if len(parts) == 0 {
		return "no tensor loaded"
	}
	return strings.Join(parts, "; ")
}

func (r LoadReport) ok() bool {
	return len(r.Loaded) > 0 && len(r.Missing) == 0 && len(r.Unexpected) == 0 && len(r.Mismatched) == 0
}
