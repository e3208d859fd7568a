// Package backend opens the device that graphs run on, says what it can do and measures
// what programs need there.
//
// Open chooses between GoMLX's pure Go backend ("go") and XLA ("xla:cpu", "xla:cuda",
// any PJRT plugin). XLA is compiled in when cgo is on; with CGO_ENABLED=0 or the build
// tag noxla the package is pure Go and asking for XLA is an error that says so.
// docs/backends.md is the user's side of this package.
package backend

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/gomlx/compute"

	"github.com/gopeft/gopeft/internal/suggest"
)

// xlaNames are the names under which go-xla registers itself.
var xlaNames = []string{"xla", "stablehlo", "hlo", "shlo"}

// Open opens a backend. The first of these that says something decides: name, the
// environment variable GOMLX_BACKEND, XLA if a PJRT plugin is installed, Go.
//
// Names are "go", "xla" (a CUDA plugin if the machine has a GPU, else a CPU one),
// "xla:cpu", "xla:cuda", "xla:/path/to/plugin.so", each with go-xla's options behind it
// ("xla:cuda,memory_fraction=0.5"), and whatever else is registered with GoMLX. "go"
// becomes "go:ops_sequential": with its default, bounded pool the Go backend dead-locks.
//
// What was asked for and cannot be had is an error that says how to get it. If nothing
// was asked for, plugins that do not load cost one line on standard error each and the
// Go backend is opened. Open never downloads anything and never panics.
//
// Every call makes a new backend; buffers of one are foreign to the others. It is the
// caller's to Finalize.
func Open(name string) (compute.Backend, error) {
	if name == "" {
		name = os.Getenv(compute.ConfigEnvVar)
	}
	if name == "" {
		return openInstalled(os.Stderr)
	}
	return openNamed(name)
}

// openInstalled opens the first plugin that loads, or Go.
func openInstalled(warnings io.Writer) (compute.Backend, error) {
	plugins := preferred(Plugins())
	if !xlaBuiltIn {
		plugins = nil // a program built without XLA was meant to be
	}
	for _, p := range plugins {
		b, err := openPlugin(p.Path, "")
		if err == nil {
			return b, nil
		}
		fmt.Fprintf(warnings, "backend: trying the next one, since %s does not open: %v\n", p.Path, err)
	}
	return openGo("")
}

func openNamed(name string) (compute.Backend, error) {
	kind, config, _ := strings.Cut(name, ":")
	switch {
	case kind == "go":
		return openGo(config)
	case slices.Contains(xlaNames, kind):
		return openXLA(name, config)
	case slices.Contains(compute.List(), kind):
		return guard(name, func() (compute.Backend, error) { return compute.NewWithConfig(name) })
	}
	known := append([]string{"go", "xla", "xla:cpu", "xla:cuda"}, compute.List()...)
	return nil, fmt.Errorf("backend: no backend is named %q%s; use go, xla, xla:cpu, xla:cuda or xla:/path/to/plugin.so (argument or %s)",
		name, suggest.DidYouMean(kind, known), compute.ConfigEnvVar)
}

// openXLA opens the plugin that config ("", "cpu", "cuda", a path, each with options)
// names. name is what the user wrote.
func openXLA(name, config string) (compute.Backend, error) {
	if !xlaBuiltIn {
		return nil, fmt.Errorf("backend: %q: this program was built without XLA: build it with CGO_ENABLED=1, a C compiler and without -tags noxla "+
			"(for linux/amd64, linux/arm64, darwin/arm64 or windows/amd64; this is %s/%s), or use the backend go", name, runtime.GOOS, runtime.GOARCH)
	}
	plugin, options, _ := strings.Cut(config, ",")
	if err := checkOptions(name, plugin, options); err != nil {
		return nil, err
	}
	path, err := findPlugin(name, plugin)
	if err != nil {
		return nil, err
	}
	return openPlugin(path, options)
}

// guard turns a panic of a backend's constructor into an error.
func guard(name string, open func() (compute.Backend, error)) (b compute.Backend, err error) {
	defer func() {
		if r := recover(); r != nil {
			b, err = nil, fmt.Errorf("backend: opening %q: %v", name, r)
		}
	}()
	b, err = open()
	if err != nil {
		return nil, fmt.Errorf("backend: opening %q: %w", name, err)
	}
	return b, nil
}
