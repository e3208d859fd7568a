package backend

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
)

// xlaPlugin returns the name under which tests open XLA, or skips.
func xlaPlugin(t testing.TB) string {
	t.Helper()
	if !xlaBuiltIn {
		t.Skip("built without XLA")
	}
	if path := os.Getenv("GOPEFT_XLA_PLUGIN"); path != "" {
		return "xla:" + path
	}
	for _, env := range []string{"GOPEFT_TEST_BACKEND", compute.ConfigEnvVar} {
		if name := os.Getenv(env); strings.HasPrefix(name, "xla") {
			return name
		}
	}
	t.Skip("no XLA: GOPEFT_XLA_PLUGIN is not the path of a PJRT plugin (sh .ci/xla_plugin.sh DIR fetches one)")
	return ""
}

func open(t testing.TB, name string) compute.Backend {
	t.Helper()
	b, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Finalize)
	return b
}

// write makes a file in a folder of the test's own and returns its path.
func write(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// noPlugins hides the plugins of the machine that runs the tests.
func noPlugins(t *testing.T) {
	t.Helper()
	t.Setenv(pluginPathEnv, t.TempDir())
	t.Setenv(compute.ConfigEnvVar, "")
}

// products is a program of n independent products of size x size matrices.
func products(t testing.TB, b compute.Backend, n, size int) *graph.Exec {
	t.Helper()
	exec, err := graph.NewExec(b, func(g *graph.Graph) *graph.Node {
		sum := graph.Scalar(g, dtypes.Float32, 0)
		for i := range n {
			x := graph.AddScalar(graph.MulScalar(graph.IotaFull(g, shapes.Make(dtypes.Float32, size, size)), 1e-6), float64(i))
			sum = graph.Add(sum, graph.ReduceAllMax(graph.Dot(x, graph.OnesLike(x)).Product()))
		}
		return sum
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(exec.Finalize)
	return exec
}

func run(t testing.TB, exec *graph.Exec) float32 {
	t.Helper()
	out, err := exec.Call1()
	if err != nil {
		t.Fatal(err)
	}
	defer out.MustFinalizeAll()
	return out.Value().(float32)
}
