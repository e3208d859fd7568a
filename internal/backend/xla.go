//go:build cgo && !noxla && ((linux && (amd64 || arm64)) || (darwin && arm64) || (windows && amd64))

package backend

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/gomlx/compute"
	"github.com/gomlx/go-xla/compute/xla"
	"k8s.io/klog/v2"
)

// xlaBuiltIn says whether this program can open XLA at all.
const xlaBuiltIn = true

// opening serialises openPlugin: it redirects klog, which is the program's.
var opening sync.Mutex

// openPlugin opens the plugin at an absolute path, with go-xla's options. The path being
// absolute keeps go-xla from searching (its search crashes on a plugin that does not
// load) and from downloading.
func openPlugin(path, options string) (compute.Backend, error) {
	path, err := pluginFile("xla:"+path, path)
	if err != nil {
		return nil, err
	}
	if err := misleadingPath(path); err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	if strings.Contains(path, ",") {
		return nil, fmt.Errorf("backend: %s: the path has a comma, which go-xla reads as the start of options; link the file elsewhere", path)
	}
	if err := prepareCUDA(path); err != nil {
		return nil, err
	}
	config := strings.TrimSuffix(path+","+options, ",")
	opening.Lock()
	defer opening.Unlock()

	// A failure is in the error already; go-xla logs it as well.
	var log bytes.Buffer
	state := klog.CaptureState()
	klog.SetSlogLogger(slog.New(slog.NewTextHandler(&log, nil)))
	b, err := guard("xla:"+config, func() (compute.Backend, error) { return xla.New(config) })
	klog.Flush()
	state.Restore()
	if err != nil {
		return nil, fmt.Errorf("%w\nIf the file is damaged or for another system: %s", err, installHelp)
	}
	if log.Len() > 0 {
		os.Stderr.Write(log.Bytes())
	}
	return b, nil
}

// prepareCUDA does what jax does for its CUDA plugin: it says in XLA_FLAGS where libdevice
// and ptxas of the nvidia packages beside it are, if they are there. The plugin finds the
// libraries by itself ($ORIGIN), and a CUDA toolkit in its usual place too.
func prepareCUDA(path string) error {
	site := filepath.Dir(filepath.Dir(filepath.Dir(path))) // site-packages/jax_plugins/xla_cuda13/x.so
	if !strings.Contains(filepath.Base(path), "cuda") || filepath.Base(filepath.Dir(filepath.Dir(path))) != "jax_plugins" {
		return nil
	}
	var root string
	for _, dir := range []string{"nvidia/cuda_nvcc", "nvidia/cu13"} {
		if _, err := os.Stat(filepath.Join(site, dir, "nvvm", "libdevice")); err == nil {
			root = filepath.Join(site, dir)
		}
	}
	if os.Getenv("GOPJRT_CUDA_CHECKS") == "" { // go-xla looks for nvidia/ in its own layout, and warns
		if err := os.Setenv("GOPJRT_CUDA_CHECKS", "0"); err != nil {
			return fmt.Errorf("backend: %w", err)
		}
	}
	flags := os.Getenv("XLA_FLAGS")
	if root == "" || strings.Contains(flags, "--xla_gpu_cuda_data_dir") {
		return nil
	}
	if err := os.Setenv("XLA_FLAGS", strings.TrimSpace(flags+" --xla_gpu_cuda_data_dir="+root)); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	return nil
}
