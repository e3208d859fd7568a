package backend

import (
	"fmt"
	"strings"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
)

// Platform is what a backend runs on.
type Platform string

// The platforms that are told apart.
const (
	Go      Platform = "go"       // GoMLX's own, in Go, on the CPU
	XLACPU  Platform = "xla:cpu"  // XLA on the CPU
	XLACUDA Platform = "xla:cuda" // XLA on NVIDIA GPUs
	XLA     Platform = "xla"      // another PJRT plugin
	Other   Platform = ""         // none of GoMLX's two backends
)

// Kind tells what b runs on. For XLA the devices say it, not the plugin's file name.
func Kind(b compute.Backend) Platform {
	switch b.Name() {
	case "Go Backend":
		return Go
	case "xla":
		device := strings.ToLower(b.DeviceDescription(0))
		switch {
		case strings.Contains(device, "cuda"):
			return XLACUDA
		case strings.Contains(device, "cpu"):
			return XLACPU
		}
		return XLA
	}
	return Other
}

// IsGo reports whether b is GoMLX's Go backend.
func IsGo(b compute.Backend) bool { return Kind(b) == Go }

// IsXLA reports whether b is XLA, on whatever device.
func IsXLA(b compute.Backend) bool { return strings.HasPrefix(string(Kind(b)), string(XLA)) }

// IsCUDA reports whether b is XLA on NVIDIA GPUs.
func IsCUDA(b compute.Backend) bool { return Kind(b) == XLACUDA }

// ComputeDType is the dtype that models compute in unless told otherwise: bfloat16 on
// CUDA, float32 elsewhere. On the Go backend half precision is slower; on XLA:CPU bfloat16
// products are faster where the processor has AMX, at the price of its rounding.
func ComputeDType(b compute.Backend) dtypes.DType {
	if IsCUDA(b) {
		return dtypes.BFloat16
	}
	return dtypes.Float32
}

// Supports finds out whether b computes in dtype by doing so: a matrix product for
// floating point, a sum for the rest. It returns nil, or why not. The lists in
// b.Capabilities miss dtypes that work and name some that only move.
func Supports(b compute.Backend, dtype dtypes.DType) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("backend: %s does not compute in %s: %v", Kind(b), dtype, r)
		}
	}()
	exec, err := graph.NewExec(b, func(g *graph.Graph) *graph.Node {
		x := graph.Ones(g, shapes.Make(dtype, 2, 2))
		if !dtype.IsFloat() {
			return graph.ConvertDType(graph.ReduceAllSum(graph.Add(x, x)), dtypes.Float32)
		}
		return graph.ConvertDType(graph.ReduceAllSum(graph.Dot(x, x).WithAccumulatorDType(dtypes.InvalidDType).Product()), dtypes.Float32)
	})
	if err != nil {
		return fmt.Errorf("backend: %s does not compute in %s: %w", Kind(b), dtype, err)
	}
	defer exec.Finalize()
	out, err := exec.Call1()
	if err != nil {
		return fmt.Errorf("backend: %s does not compute in %s: %w", Kind(b), dtype, err)
	}
	defer out.MustFinalizeAll()
	if got, ok := out.Value().(float32); !ok || got != 8 {
		return fmt.Errorf("backend: %s computes wrongly in %s: got %v, want 8", Kind(b), dtype, out.Value())
	}
	return nil
}
