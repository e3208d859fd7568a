package backend

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
	"github.com/gomlx/gomlx/ml/model"
)

// square is a program of x . (x . x) for x [n, n]: one argument, one output, and a
// temporary of the same size between the products.
func square(t *testing.T, b compute.Backend) *graph.Exec {
	t.Helper()
	exec, err := graph.NewExec(b, func(x *graph.Node) *graph.Node {
		return graph.Dot(x, graph.Dot(x, x).Product()).Product()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(exec.Finalize)
	return exec
}

func TestCompiledMemoryXLA(t *testing.T) {
	b := open(t, xlaPlugin(t))
	exec := square(t, b)
	if _, err := CompiledMemory(exec); err == nil || !strings.Contains(err.Error(), "compiled nothing") {
		t.Errorf("before compiling: %v", err)
	}
	const n = 64
	small, err := exec.Compile(shapes.Make(dtypes.Float32, n, n))
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []any{small, small.Executable(), exec} {
		m, err := CompiledMemory(program)
		if err != nil {
			t.Fatal(err)
		}
		if m.Arguments != 4*n*n || m.Outputs != 4*n*n || m.Temporaries < 4*n*n || m.Alias != 0 || m.GeneratedCode < 0 {
			t.Errorf("%T: %+v, want arguments and outputs of %d bytes and at least as many temporaries", program, m, 4*n*n)
		}
	}
	if _, err := exec.Compile(shapes.Make(dtypes.Float32, 4*n, 4*n)); err != nil {
		t.Fatal(err)
	}
	if m, err := CompiledMemory(exec); err != nil || m.Arguments != 16*4*n*n {
		t.Errorf("of two programs not the larger: %+v, %v", m, err)
	}
	small.Finalize()
	if _, err := CompiledMemory(small); err == nil {
		t.Error("a finalized graph has an analysis")
	}
}

func TestCompiledMemoryModelExec(t *testing.T) {
	b := open(t, xlaPlugin(t))
	store := model.NewStore()
	store.RootScope().VariableWithValue("w", make([]float32, 1000))
	exec, err := model.NewExec(b, store, func(scope *model.Scope, x *graph.Node) *graph.Node {
		w := scope.GetVariable("w").NodeValue(x.Graph())
		return graph.Add(x, w)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer exec.Finalize()
	out, err := exec.Exec(tensors.FromValue(make([]float32, 1000)))
	if err != nil {
		t.Fatal(err)
	}
	out[0].MustFinalizeAll()
	if m, err := CompiledMemory(exec); err != nil || m.Arguments != 8000 || m.Outputs != 4000 || m.Total() < 12000 {
		t.Errorf("%+v, %v; want 8000 bytes of arguments and 4000 of outputs", m, err)
	}
}

func TestCompiledMemoryGo(t *testing.T) {
	exec := square(t, open(t, "go"))
	if _, err := exec.Compile(shapes.Make(dtypes.Float32, 4, 4)); err != nil {
		t.Fatal(err)
	}
	if _, err := CompiledMemory(exec); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want an error that wraps ErrUnsupported", err)
	}
}

// TestCompiledMemoryForeign: nothing but an error comes of what is not as expected.
func TestCompiledMemoryForeign(t *testing.T) {
	var none *graph.Graph
	for _, program := range []any{nil, 3, none, (*graph.Exec)(nil), (*model.Exec)(nil), &graph.Exec{}, &model.Exec{}, struct{ exec int }{}} {
		if m, err := CompiledMemory(program); err == nil {
			t.Errorf("%T: %+v without an error", program, m)
		}
	}
}

func TestGoPeak(t *testing.T) {
	const size = 64 << 20
	var held []byte
	peak, err := GoPeak(func() error {
		held = make([]byte, size)
		for i := range held {
			held[i] = 1
		}
		runtime.KeepAlive(held)
		return nil
	})
	held = nil
	if err != nil || peak < size || peak > 4*size {
		t.Errorf("peak %d, %v; want a little over %d", peak, err, size)
	}
	low, err := GoPeak(func() error { return os.ErrExist })
	if !errors.Is(err, os.ErrExist) || low >= size || low == 0 {
		t.Errorf("peak %d, %v; want f's error and less than %d", low, err, size)
	}
}

func TestGoPeakOfProgram(t *testing.T) {
	b := open(t, "go")
	exec := products(t, b, 1, 512)
	run(t, exec) // compile
	peak, err := GoPeak(func() error { run(t, exec); return nil })
	if err != nil || peak < 3*4*512*512 {
		t.Errorf("peak %d, %v; a product of 512² needs at least its three matrices, %d", peak, err, 3*4*512*512)
	}
}

func TestHostPeakRSS(t *testing.T) {
	got, err := HostPeakRSS()
	if runtime.GOOS != "linux" {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Fatalf("got %v", err)
		}
		return
	}
	if err != nil || got < 1<<20 || got > 1<<42 {
		t.Errorf("HostPeakRSS() = %d, %v", got, err)
	}
}

func TestParseVmHWM(t *testing.T) {
	for status, want := range map[string]uint64{
		"Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t   12 kB\n": 12 << 10,
		"VmHWM:\t12 MB\n":                0,
		"VmHWM:\t-1 kB\n":                0,
		"VmHWM:\t99999999999999999 kB\n": 0,
		"":                               0,
		"VmHWM:":                         0,
	} {
		got, err := parseVmHWM([]byte(status))
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("parseVmHWM(%q) = %d, %v; want %d", status, got, err, want)
		}
	}
}

func TestParseSMI(t *testing.T) {
	used, total, err := parseSMI([]byte("3, 143771\n0, 81559\n"))
	if err != nil || fmt.Sprint(used, total) != "[3145728 0] [150754820096 85520809984]" {
		t.Errorf("got %v %v %v", used, total, err)
	}
	if _, _, err := parseSMI([]byte("[N/A], 4\n")); err == nil {
		t.Error("[N/A] is a number")
	}
}

func TestDeviceMemoryNeedsCUDA(t *testing.T) {
	if _, _, err := DeviceMemory(t.Context(), open(t, "go")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

func FuzzParseVmHWM(f *testing.F) {
	f.Add([]byte("VmHWM:\t   12 kB\n"))
	f.Fuzz(func(t *testing.T, status []byte) {
		if n, err := parseVmHWM(status); err != nil && n != 0 {
			t.Errorf("%d with error %v", n, err)
		}
	})
}

func FuzzParseSMI(f *testing.F) {
	f.Add([]byte("3, 143771\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		if used, total, _ := parseSMI(out); len(used) != len(total) {
			t.Errorf("%v, %v", used, total)
		}
	})
}
