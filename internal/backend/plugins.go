package backend

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/gopeft/gopeft/internal/suggest"
)

// pluginPathEnv lists the only folders to search for plugins if it is set, as for go-xla.
const pluginPathEnv = "PJRT_PLUGIN_LIBRARY_PATH"

// Plugin is a PJRT plugin found on this machine: a shared library with XLA in it.
type Plugin struct {
	Name string // its platform: "cpu", "cuda", "cpu_v0.114.0", ...
	Path string // absolute
}

// pluginNames are the file names of plugins: go-xla's two, and that of jax's wheels.
var pluginNames = []*regexp.Regexp{
	regexp.MustCompile(`^pjrt_c_api_(.+)_plugin\.(?:so|dylib|dll)$`),
	regexp.MustCompile(`^pjrt[-_]plugin[-_](.+)\.(?:so|dylib|dll)$`),
	regexp.MustCompile(`^xla_(cuda|rocm)_plugin\.so$`),
}

// pluginName returns the platform that a plugin's file name says, or "".
func pluginName(path string) string {
	for _, re := range pluginNames {
		if m := re.FindStringSubmatch(filepath.Base(path)); m != nil {
			return m[1]
		}
	}
	return ""
}

// Plugins lists the plugins on this machine in the order of the folders searched:
// those of PJRT_PLUGIN_LIBRARY_PATH if it is set, else go-xla's own (~/.local/lib/go-xla,
// /usr/local/lib/go-xla), LD_LIBRARY_PATH's, and the CUDA plugins of jax in the active and
// the usual Python environments. It looks at names only and loads nothing.
func Plugins() []Plugin {
	var found []Plugin
	seen := map[string]bool{}
	for _, dir := range pluginDirs() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // most of the usual folders do not exist
		}
		for _, e := range entries {
			path, err := filepath.Abs(filepath.Join(dir, e.Name()))
			if name := pluginName(e.Name()); name != "" && err == nil && !seen[path] {
				seen[path] = true
				found = append(found, Plugin{name, path})
			}
		}
	}
	return found
}

func pluginDirs() []string {
	if dirs, set := os.LookupEnv(pluginPathEnv); set {
		return filepath.SplitList(dirs)
	}
	var dirs []string
	if home, err := os.UserHomeDir(); err == nil {
		lib := map[string]string{"darwin": "Library/Application Support", "windows": "AppData/Local"}[runtime.GOOS]
		if lib == "" {
			lib = ".local/lib"
		}
		lib = filepath.Join(home, filepath.FromSlash(lib), "go-xla")
		dirs = append(dirs, lib, filepath.Join(lib, "nvidia"))
	}
	dirs = append(dirs, "/usr/local/lib/go-xla", "/usr/local/lib/go-xla/nvidia")
	for _, dir := range filepath.SplitList(os.Getenv("LD_LIBRARY_PATH")) {
		if filepath.IsAbs(dir) {
			dirs = append(dirs, dir)
		}
	}
	return append(dirs, jaxDirs()...)
}

// jaxDirs are the folders of jax's CUDA plugins in Python environments, newest CUDA first.
func jaxDirs() []string {
	home, _ := os.UserHomeDir()
	var dirs []string
	for _, env := range []string{
		os.Getenv("VIRTUAL_ENV"), os.Getenv("CONDA_PREFIX"), filepath.Join(home, ".local"),
		"/opt/*/.venv", "/opt/venv", "/opt/conda", "/usr/local", "/usr",
	} {
		if env == "" || env == ".local" {
			continue
		}
		for _, packages := range []string{"site-packages", "dist-packages"} {
			pattern := filepath.Join(env, "lib", "python3*", packages, "jax_plugins", "xla_cuda*")
			matches, err := filepath.Glob(pattern)
			if err != nil {
				continue // an environment variable with a broken pattern in it
			}
			slices.Reverse(matches)
			dirs = append(dirs, matches...)
		}
	}
	return dirs
}

// preferred orders plugins for a user who named none: CUDA if there is a GPU, then CPU.
// Others, and CUDA without a GPU, are left out.
func preferred(plugins []Plugin) []Plugin {
	var cuda, cpu []Plugin
	gpu := hasGPU()
	for _, p := range plugins {
		switch {
		case isPlatform(p.Name, "cuda") && gpu:
			cuda = append(cuda, p)
		case isPlatform(p.Name, "cpu"):
			cpu = append(cpu, p)
		}
	}
	return append(cuda, cpu...)
}

// isPlatform reports whether a plugin's name is platform or a version of it.
func isPlatform(name, platform string) bool {
	return name == platform || strings.HasPrefix(name, platform+"_v")
}

// hasGPU reports whether a driver shows an NVIDIA GPU (natively or under WSL).
func hasGPU() bool {
	for _, pattern := range []string{"/dev/nvidia*", "/dev/dxg"} {
		if m, err := filepath.Glob(pattern); err == nil && len(m) > 0 {
			return true
		}
	}
	return false
}

// findPlugin returns the path of the plugin that the user's backend name asks for.
func findPlugin(name, plugin string) (string, error) {
	if strings.ContainsAny(plugin, `/\`) {
		return pluginFile(name, plugin)
	}
	all := Plugins()
	candidates := all
	if plugin == "" {
		candidates = preferred(all)
	} else {
		candidates = slices.DeleteFunc(slices.Clone(all), func(p Plugin) bool { return !isPlatform(p.Name, plugin) })
	}
	if len(candidates) > 0 {
		return candidates[0].Path, nil
	}
	known := []string{"cpu", "cuda"}
	for _, p := range all {
		known = append(known, p.Name)
	}
	have := "none"
	if len(all) > 0 {
		have = strings.Join(known[2:], ", ")
	}
	hint := ""
	if !slices.Contains(known, plugin) { // a right name needs a plugin, not another name
		hint = suggest.DidYouMean(plugin, known)
	}
	return "", fmt.Errorf("backend: %q: no such PJRT plugin on this machine (found: %s)%s\n%s", name, have, hint, installHelp)
}

// installHelp says how to get a plugin.
const installHelp = `To install one:
  CPU, without a package manager:  sh .ci/xla_plugin.sh DIR   (in a checkout of gopeft; needs python3 with pip, or curl)
  CPU, with pip:                   pip download --no-deps lammps-jax-pjrt-cpu==0.11.2 && unzip -d DIR lammps_jax_pjrt_cpu-*.whl
                                   then GOMLX_BACKEND=xla:DIR/lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so (absolute)
  CUDA:                            pip install "jax[cuda13]"   (found by itself in the active Python environment)
  either, go-xla's own:            go run github.com/gomlx/go-xla/cmd/pjrt_installer@latest   (into ~/.local/lib/go-xla)
Plugins elsewhere: set ` + pluginPathEnv + ` to their folder. Without one: GOMLX_BACKEND=go.`

// xlaOptions are the options that go-xla v0.4.1 knows.
var xlaOptions = []string{"tf32", "shared_buffers", "preallocate", "memory_fraction", "allocator", "visible_devices", "use_tfrt_gpu_client"}

// checkOptions looks at option names before go-xla does, to have a better answer.
func checkOptions(name, plugin, options string) error {
	if plugin == "help" || slices.Contains(strings.Split(options, ","), "help") {
		return fmt.Errorf("backend: %q: options are %s (name=value, or no… for false), separated by commas; plugins found: %v",
			name, strings.Join(xlaOptions, ", "), Plugins())
	}
	for option := range strings.SplitSeq(options, ",") {
		key, _, _ := strings.Cut(option, "=")
		if key == "" || slices.Contains(xlaOptions, key) || slices.Contains(xlaOptions, strings.TrimPrefix(key, "no")) {
			continue
		}
		return fmt.Errorf("backend: %q: XLA has no option %q%s; it has %s",
			name, key, suggest.DidYouMean(key, xlaOptions), strings.Join(xlaOptions, ", "))
	}
	return nil
}
