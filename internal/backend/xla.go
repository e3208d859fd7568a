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

// prepareCUDA completes the environment of a CUDA plugin, which reads it when it is loaded.
// What the user has set stays.
func prepareCUDA(path string) error {
	if !strings.Contains(filepath.Base(path), "cuda") {
		return nil
	}
	// go-xla looks for nvidia/ in its own layout, and warns when it is jax's.
	if isJax(path) && os.Getenv("GOPJRT_CUDA_CHECKS") == "" {
		if err := os.Setenv("GOPJRT_CUDA_CHECKS", "0"); err != nil {
			return fmt.Errorf("backend: %w", err)
		}
	}
	// XLA merges products that share an operand by concatenating their weights, at every
	// step anew; above 1 MB that costs more than it gains (H200: 7B step 97 -> 95 ms, 1B 24.3 -> 22.7 ms).
	// And it records kernels into CUDA graphs, which it must update at every step because the
	// buffers are others: launching them one by one is faster (1B step 23.7 -> 22.3 ms, 7B equal).
	flags := []string{"--xla_gpu_dot_merger_threshold_mb=1", "--xla_gpu_enable_command_buffer="}
	if root := cudaData(path); root != "" {
		flags = append(flags, "--xla_gpu_cuda_data_dir="+root)
	}
	return addXLAFlags(flags)
}

// cudaData returns where libdevice and ptxas of the nvidia packages beside jax's plugin
// are, as jax tells its plugin; "" if they are not there. The plugin finds its libraries by
// itself ($ORIGIN), and a CUDA toolkit in its usual place too.
func cudaData(path string) string {
	if !isJax(path) {
		return ""
	}
	site := filepath.Dir(filepath.Dir(filepath.Dir(path))) // site-packages/jax_plugins/xla_cuda13/x.so
	for _, dir := range []string{"nvidia/cu13", "nvidia/cuda_nvcc"} {
		if _, err := os.Stat(filepath.Join(site, dir, "nvvm", "libdevice")); err == nil {
			return filepath.Join(site, dir)
		}
	}
	return ""
}

// isJax reports whether a plugin lies in a Python environment as jax installs it.
func isJax(path string) bool {
	return filepath.Base(filepath.Dir(filepath.Dir(path))) == "jax_plugins"
}

// addXLAFlags appends to XLA_FLAGS the flags of other names than those in it.
func addXLAFlags(flags []string) error {
	value := os.Getenv("XLA_FLAGS")
	for _, flag := range flags {
		name, _, _ := strings.Cut(flag, "=")
		if !strings.Contains(value, name) {
			value = strings.TrimSpace(value + " " + flag)
		}
	}
	if err := os.Setenv("XLA_FLAGS", value); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	return nil
}
