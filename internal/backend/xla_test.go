//go:build cgo && !noxla && ((linux && (amd64 || arm64)) || (darwin && arm64) || (windows && amd64))

package backend

import (
	"os"
	"path/filepath"
	"testing"
)

func TestPrepareCUDA(t *testing.T) {
	site := t.TempDir()
	jax := filepath.Join(site, "jax_plugins", "xla_cuda13", "xla_cuda_plugin.so")
	cu13 := filepath.Join(site, "nvidia", "cu13")
	const graphs = "--xla_gpu_enable_command_buffer="
	const merger = "--xla_gpu_dot_merger_threshold_mb=1 " + graphs
	for _, c := range []struct {
		name, plugin, flags, wantFlags, wantChecks string
		toolkit                                    bool
	}{
		{name: "CPU", plugin: "/usr/local/lib/go-xla/pjrt_c_api_cpu_plugin.so", flags: "-a", wantFlags: "-a"},
		{name: "not jax's", plugin: "/usr/local/lib/go-xla/pjrt_c_api_cuda_plugin.so", flags: "-a", wantFlags: "-a " + merger},
		{name: "no toolkit beside it", plugin: jax, flags: "-a", wantFlags: "-a " + merger, wantChecks: "0"},
		{name: "toolkit", plugin: jax, flags: "-a", wantFlags: "-a " + merger + " --xla_gpu_cuda_data_dir=" + cu13, wantChecks: "0", toolkit: true},
		{name: "the user's own data", plugin: jax, flags: "--xla_gpu_cuda_data_dir=/x", wantFlags: "--xla_gpu_cuda_data_dir=/x " + merger, wantChecks: "0", toolkit: true},
		{name: "the user's own merger", plugin: jax, flags: "--xla_gpu_dot_merger_threshold_mb=32", wantFlags: "--xla_gpu_dot_merger_threshold_mb=32 " + graphs + " --xla_gpu_cuda_data_dir=" + cu13, wantChecks: "0", toolkit: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("XLA_FLAGS", c.flags)
			t.Setenv("GOPJRT_CUDA_CHECKS", "")
			if c.toolkit {
				if err := os.MkdirAll(filepath.Join(cu13, "nvvm", "libdevice"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := prepareCUDA(c.plugin); err != nil {
				t.Fatal(err)
			}
			if f, k := os.Getenv("XLA_FLAGS"), os.Getenv("GOPJRT_CUDA_CHECKS"); f != c.wantFlags || k != c.wantChecks {
				t.Errorf("XLA_FLAGS=%q GOPJRT_CUDA_CHECKS=%q, want %q and %q", f, k, c.wantFlags, c.wantChecks)
			}
		})
	}
}
