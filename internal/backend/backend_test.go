package backend

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
)

func TestGoOptions(t *testing.T) {
	minus, two := -1, 2
	for _, c := range []struct {
		config, options string
		parallelism     *int
	}{
		{"", "ops_sequential", nil},
		{"ops_sequential", "ops_sequential", nil},
		{"creation_order", "creation_order,ops_sequential", nil},
		{"parallelism=-1", "", &minus},
		{"ops_parallel,parallelism=-1", "ops_parallel", &minus},
		{"parallelism=2", "ops_sequential", &two}, // bounded: it could dead-lock
		{",,ops_sequential,", "ops_sequential", nil},
	} {
		options, parallelism, err := goOptions("go:"+c.config, c.config)
		if err != nil || options != c.options || !reflect.DeepEqual(parallelism, c.parallelism) {
			t.Errorf("goOptions(%q) = %q, %v, %v; want %q, %v", c.config, options, parallelism, err, c.options, c.parallelism)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	noPlugins(t)
	notELF := write(t, "pjrt_c_api_cpu_plugin.so", "not a library")
	cases := []struct {
		name string
		want []string
		xla  bool // only where XLA is built in
	}{
		{"cuda", []string{`no backend is named "cuda"`, "xla:cuda", "GOMLX_BACKEND"}, false},
		{"xlaa:cpu", []string{`"xlaa:cpu"`, `did you mean "xla"?`}, false},
		{"go:ops_sequentail", []string{"ops_sequentail", "valid configuration options"}, false},
		{"go:parallelism=many", []string{"parallelism", `"many"`}, false},
		{"go:ops_parallel", []string{"dead-locks", "parallelism=-1"}, false},
		{"xla", []string{"found: none", "pip download --no-deps lammps-jax-pjrt-cpu==0.11.2", "GOMLX_BACKEND=go"}, true},
		{"xla:cpu", []string{`"xla:cpu"`, "pjrt_installer", "PJRT_PLUGIN_LIBRARY_PATH"}, true},
		{"xla:cuda,tf32=false", []string{"jax[cuda13]"}, true},
		{"xla:cdua", []string{`did you mean "cuda"?`}, true},
		{"xla:cpu,preallocat=true", []string{`no option "preallocat"`, `did you mean "preallocate"?`}, true},
		{"xla:help", []string{"memory_fraction"}, true},
		{"xla:/no/such/plugin.so", []string{"there is no plugin file /no/such/plugin.so", "pip download"}, true},
		{"xla:" + filepath.Dir(notELF), []string{"is a folder", notELF}, true},
		{"xla:" + notELF, []string{notELF, "no shared library"}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := c.want
			if c.xla && !xlaBuiltIn {
				want = []string{"built without XLA", "CGO_ENABLED=1", "noxla"}
			}
			b, err := Open(c.name)
			if err == nil {
				b.Finalize()
				t.Fatal("it opened")
			}
			for _, w := range want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error lacks %q:\n%v", w, err)
				}
			}
		})
	}
}

// TestOpenForeignArchitecture changes the machine in this test program's own ELF header.
func TestOpenForeignArchitecture(t *testing.T) {
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	const machine = 18 // e_machine
	if !bytes.HasPrefix(self, []byte("\x7fELF")) || len(self) < 64 {
		t.Skip("not an ELF system")
	}
	if err := checkELF(os.Args[0]); err != nil {
		t.Fatalf("this program itself: %v", err)
	}
	self[machine], self[machine+1] = 243, 0 // RISC-V
	err = checkELF(write(t, "pjrt_c_api_cpu_plugin.so", string(self)))
	if err == nil || !strings.Contains(err.Error(), "EM_RISCV") || !strings.Contains(err.Error(), "fetch the plugin for") {
		t.Fatalf("got %v", err)
	}
}

func TestMisleadingPath(t *testing.T) {
	for path, ok := range map[string]bool{
		"/opt/xla/pjrt_c_api_cpu_plugin.so":                            true,
		"/opt/x/pjrt_c_api_cuda_plugin.so":                             true,
		"/v/site-packages/jax_plugins/xla_cuda13/xla_cuda_plugin.so":   true,
		"/home/me/cuda-env/lib/pjrt_c_api_cpu_plugin.so":               false,
		"/usr/local/lib/go-xla/nvidia/pjrt_c_api_cpu_v0.114_plugin.so": false,
	} {
		if err := misleadingPath(path); (err == nil) != ok {
			t.Errorf("misleadingPath(%s) = %v", path, err)
		}
	}
}

func TestOpenOrder(t *testing.T) {
	noPlugins(t)
	if b := open(t, ""); Kind(b) != Go {
		t.Errorf("without plugins: %s, want Go", Kind(b))
	}
	t.Setenv(compute.ConfigEnvVar, "nonesuch")
	if _, err := Open(""); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Errorf("GOMLX_BACKEND is not obeyed: %v", err)
	}
	if b := open(t, "go"); Kind(b) != Go {
		t.Errorf("explicit go: %s", Kind(b))
	}
}

// TestOpenInstalledFallsBack: an installed plugin that does not load costs a line, not
// the run; asked for, it is an error.
func TestOpenInstalledFallsBack(t *testing.T) {
	if !xlaBuiltIn {
		t.Skip("built without XLA")
	}
	noPlugins(t)
	broken := write(t, "pjrt_c_api_cpu_plugin.so", "not a library")
	t.Setenv(pluginPathEnv, filepath.Dir(broken))
	var warnings bytes.Buffer
	b, err := openInstalled(&warnings)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Finalize()
	if Kind(b) != Go || !strings.Contains(warnings.String(), broken) || strings.Count(warnings.String(), "\n") != 1 {
		t.Errorf("opened %s and said %q", Kind(b), warnings.String())
	}
	if _, err := Open("xla:cpu"); err == nil {
		t.Error("the broken plugin, asked for, opened")
	}
}

func TestPlugins(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the folders below are Linux's")
	}
	home, venv := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("VIRTUAL_ENV", venv)
	t.Setenv("LD_LIBRARY_PATH", "")
	t.Setenv(pluginPathEnv, "") // restored at the end
	os.Unsetenv(pluginPathEnv)
	jax := filepath.Join(venv, "lib", "python3.12", "site-packages", "jax_plugins")
	files := []string{
		filepath.Join(home, ".local", "lib", "go-xla", "pjrt_c_api_cpu_v0.114.0_plugin.so"),
		filepath.Join(jax, "xla_cuda13", "xla_cuda_plugin.so"),
		filepath.Join(jax, "xla_cuda12", "xla_cuda_plugin.so"),
		filepath.Join(jax, "xla_cuda12", "xla_cuda_other.so"),
	}
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var got []Plugin
	for _, p := range Plugins() { // the machine may have some of its own
		if strings.HasPrefix(p.Path, home) || strings.HasPrefix(p.Path, venv) {
			got = append(got, p)
		}
	}
	want := []Plugin{{"cpu_v0.114.0", files[0]}, {"cuda", files[1]}, {"cuda", files[2]}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Plugins() = %v, want %v", got, want)
	}
	t.Setenv(pluginPathEnv, filepath.Dir(files[2]))
	if got := Plugins(); !reflect.DeepEqual(got, want[2:]) {
		t.Errorf("with %s: %v, want %v", pluginPathEnv, got, want[2:])
	}
	for name, want := range map[string]bool{"cpu": true, "cpu_v0.114.0": true, "cpux": false, "cuda": false} {
		if isPlatform(name, "cpu") != want {
			t.Errorf("isPlatform(%q, cpu) is %t", name, !want)
		}
	}
}

func TestGoBackend(t *testing.T) {
	b := open(t, "go")
	if !IsGo(b) || IsXLA(b) || IsCUDA(b) || ComputeDType(b) != dtypes.Float32 {
		t.Errorf("go: kind %q, compute dtype %s", Kind(b), ComputeDType(b))
	}
	checkDTypes(t, b)
}

func TestXLABackend(t *testing.T) {
	b := open(t, xlaPlugin(t))
	if IsGo(b) || !IsXLA(b) {
		t.Errorf("kind %q", Kind(b))
	}
	if want := map[Platform]dtypes.DType{XLACPU: dtypes.Float32, XLACUDA: dtypes.BFloat16}[Kind(b)]; ComputeDType(b) != want {
		t.Errorf("%s: compute dtype %s, want %s", Kind(b), ComputeDType(b), want)
	}
	checkDTypes(t, b)
	if !IsCUDA(b) {
		return
	}
	used, total, err := DeviceMemory(t.Context(), b)
	if err != nil || len(used) < b.NumDevices() || total[0] < 1<<30 || used[0] > total[0] {
		t.Errorf("DeviceMemory: %d of %d, %v", used, total, err)
	}
}

func checkDTypes(t *testing.T, b compute.Backend) {
	t.Helper()
	for _, d := range []dtypes.DType{dtypes.Float32, dtypes.BFloat16, dtypes.Float16, dtypes.Int32, dtypes.Uint8} {
		if err := Supports(b, d); err != nil {
			t.Error(err)
		}
	}
	if err := Supports(b, dtypes.InvalidDType); err == nil {
		t.Error("the invalid dtype is supported")
	}
}

// TestXLALoaderErrors: files that pass for libraries and are not plugins.
func TestXLALoaderErrors(t *testing.T) {
	if !xlaBuiltIn {
		t.Skip("built without XLA")
	}
	libm, err := filepath.Glob("/lib/*/libm.so.6")
	if err != nil || len(libm) == 0 {
		t.Skip("no libm to try")
	}
	_, err = Open("xla:" + libm[0])
	if err == nil || !strings.Contains(err.Error(), "GetPjrtApi") || !strings.Contains(err.Error(), "pip download") {
		t.Errorf("got %v", err)
	}
}

// TestOpenIsSilent opens backends in another process and looks at what it prints.
func TestOpenIsSilent(t *testing.T) {
	const env = "GOPEFT_TEST_OPEN_SILENTLY"
	if name := os.Getenv(env); name != "" {
		exec := products(t, open(t, name), 1, 2)
		run(t, exec)
		return
	}
	for _, name := range []string{"go", "go:parallelism=2", "go:parallelism=-1", "xla"} {
		t.Run(name, func(t *testing.T) {
			if name == "xla" {
				name = xlaPlugin(t)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestOpenIsSilent$", "-test.coverprofile=")
			cmd.Env = append(os.Environ(), env+"="+name, "GODEBUG=cpu.fma=off")
			if out, err := cmd.CombinedOutput(); err != nil || string(out) != "PASS\n" {
				t.Errorf("%v; it printed %q, want PASS alone", err, out)
			}
		})
	}
}

// TestGoDoesNotDeadlock runs what hangs within a few executions on GoMLX's default pool.
func TestGoDoesNotDeadlock(t *testing.T) {
	executions := 50
	if testing.Short() {
		executions = 10
	}
	for _, name := range []string{"go", "go:parallelism=-1", "go:parallelism=2"} {
		exec := products(t, open(t, name), 5, 256)
		done := make(chan struct{})
		go func() {
			defer close(done)
			first := run(t, exec)
			for range executions - 1 {
				if got := run(t, exec); got != first {
					t.Errorf("%s: %g, then %g", name, first, got)
				}
			}
		}()
		select {
		case <-done:
		case <-time.After(3 * time.Minute):
			t.Fatalf("%s: %d executions of 5 products of 256³ hang", name, executions)
		}
	}
}

// BenchmarkProducts multiplies 512x512 matrices, five independent pairs at a time.
func BenchmarkProducts(b *testing.B) {
	for _, name := range []string{"go", "xla"} {
		b.Run(name, func(b *testing.B) {
			if name == "xla" {
				name = xlaPlugin(b)
			}
			exec := products(b, open(b, name), 5, 512)
			run(b, exec)
			for b.Loop() {
				run(b, exec)
			}
			b.ReportMetric(5*2*512*512*512*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}

func FuzzGoOptions(f *testing.F) {
	for _, config := range []string{"", "parallelism=-1", "ops_parallel,parallelism=4", "creation_order,,x=y"} {
		f.Add(config)
	}
	f.Fuzz(func(t *testing.T, config string) {
		options, parallelism, err := goOptions("go:"+config, config)
		unbounded := parallelism != nil && *parallelism < 0
		if err == nil && !unbounded && !slices.Contains(strings.Split(options, ","), "ops_sequential") {
			t.Errorf("%q -> %q can dead-lock", config, options)
		}
	})
}
