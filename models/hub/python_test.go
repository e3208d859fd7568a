package hub

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// python runs huggingface_hub's snapshot_download with the given arguments.
func python(t *testing.T, cache, endpoint, args string) string {
	t.Helper()
	exe := os.Getenv("GOPEFT_PYTHON")
	if exe == "" {
		t.Skip("GOPEFT_PYTHON is not set: want a Python with huggingface_hub")
	}
	cmd := exec.Command(exe, "-c", "from huggingface_hub import snapshot_download; print(snapshot_download("+args+"))")
	for _, e := range os.Environ() {
		if !strings.HasSuffix(e, "=") { // to Python an empty HF_TOKEN_PATH is a path
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, "HF_HUB_CACHE="+cache, "HF_ENDPOINT="+endpoint, "HF_HUB_DISABLE_XET=1", "HF_HUB_DISABLE_TELEMETRY=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", stderr.String())
	return strings.TrimSpace(string(out))
}

// Python finds what Go downloaded, and adds to it.
func TestPythonReadsOurCache(t *testing.T) {
	h := newFakeHub(t, shardedModel())
	h.files["README.md"] = []byte("for Python")
	cache := t.TempDir()
	dir, err := h.resolve(t, Options{CacheDir: cache})
	require.NoError(t, err)
	require.Equal(t, dir, python(t, cache, h.hub.URL, `"org/tiny", local_files_only=True`))
	before := h.count("GET /model-0000")
	require.Equal(t, dir, python(t, cache, h.hub.URL, `"org/tiny"`))
	require.Equal(t, before, h.count("GET /model-0000"), "Python need not download the weights again")
	require.FileExists(t, filepath.Join(dir, "README.md"))
}

// Go finds what Python downloaded.
func TestWeReadPythonsCache(t *testing.T) {
	h := newFakeHub(t, shardedModel())
	cache := t.TempDir()
	want := python(t, cache, h.hub.URL, `"org/tiny"`)
	h.forget()
	dir, err := h.resolve(t, Options{CacheDir: cache, Offline: true})
	require.NoError(t, err)
	require.Equal(t, want, dir)
	requireFolder(t, shardedModel(), dir)
	require.Empty(t, h.forget())
}
