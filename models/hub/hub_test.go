package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestResolvePath(t *testing.T) {
	clearEnv(t)
	t.Setenv("HF_ENDPOINT", "http://127.0.0.1:1") // a request would fail
	root := t.TempDir()
	t.Chdir(root)
	t.Setenv("HOME", root)
	require.NoError(t, os.MkdirAll(filepath.Join("org", "name"), 0o777))
	require.NoError(t, os.WriteFile("file", nil, 0o666))
	for _, path := range []string{".", "./org/name", "org/name", "org/name/", root} {
		dir, err := Resolve(t.Context(), path, Options{})
		require.NoError(t, err)
		require.Equal(t, path, dir)
	}
	dir, err := Resolve(t.Context(), "~/org/name", Options{})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(root, "org", "name"), dir)

	for path, want := range map[string]string{
		"./none":        "there is no folder " + filepath.Join(root, "none"),
		"../none":       "there is no folder " + filepath.Join(filepath.Dir(root), "none"),
		"none/":         "there is no folder",
		"~/none":        "there is no folder " + filepath.Join(root, "none"),
		"/none/of/this": "there is no folder /none/of/this",
		"a/b/c":         `there is no folder ` + filepath.Join(root, "a/b/c") + `, and it is no hub id: want "org/name" or "name"`,
	} {
		_, err := Resolve(t.Context(), path, Options{})
		require.ErrorContains(t, err, want)
		require.ErrorIs(t, err, fs.ErrNotExist)
	}
	for path, want := range map[string]string{
		"file": "it is a file, want a folder", "": "it is no hub id: it is empty", "a b": "no hub id: ids have letters", "org/a--b": "no hub id",
		"org/a..b": "no hub id", "org/x.git": "no hub id", "-org/x": "no hub id", "org/x-": "no hub id", "C:x": "no hub id",
	} {
		_, err := Resolve(t.Context(), path, Options{})
		require.ErrorContains(t, err, want, path)
	}
	for _, revision := range []string{"../../x", "/x", `..\x`, "a:b"} {
		_, err := Resolve(t.Context(), "org/other", Options{Revision: revision})
		require.ErrorContains(t, err, "is no branch, tag or commit")
	}
	_, err = Resolve(t.Context(), "org/other", Options{Endpoint: "ftp://x"})
	require.ErrorContains(t, err, `endpoint "ftp://x" is no http address`)
}

func TestDownload(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	h.files["README.md"] = []byte("not wanted")
	h.files["consolidated.safetensors"] = []byte("not wanted")
	h.files["model.safetensors.index.json"] = []byte("not wanted beside model.safetensors")
	h.files["onnx/model.safetensors"] = []byte("not wanted")
	cache := t.TempDir()
	var seen []Progress
	dir, err := h.resolve(t, Options{CacheDir: cache, Progress: func(p Progress) { seen = append(seen, p) }})
	require.NoError(t, err)
	requireFolder(t, tinyModel(), dir)

	repo := filepath.Join(cache, "models--org--tiny")
	require.Equal(t, filepath.Join(repo, "snapshots", testCommit), dir)
	ref, err := os.ReadFile(filepath.Join(repo, "refs", "main"))
	require.NoError(t, err)
	require.Equal(t, testCommit, string(ref))
	for name, content := range tinyModel() {
		link, err := os.Readlink(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, filepath.Join("..", "..", "blobs", etagOf(name, content)), link)
		require.FileExists(t, filepath.Join(cache, ".locks", "models--org--tiny", etagOf(name, content)+".lock"))
	}
	last := seen[len(seen)-1]
	require.Equal(t, last.AllTotal, last.AllDone)
	require.Equal(t, int64(800_000+22+2), last.AllTotal)
	for _, p := range seen {
		require.LessOrEqual(t, p.Done, p.Total)
	}

	// A full cache costs one request online and none offline.
	h.forget()
	_, err = h.resolve(t, Options{CacheDir: cache})
	require.NoError(t, err)
	require.Equal(t, []string{"GET /api/models/org/tiny/revision/main"}, h.forget())
	h.forget()
	for _, o := range []Options{{CacheDir: cache, Offline: true}, {CacheDir: cache, Offline: true, Revision: testCommit}} {
		again, err := h.resolve(t, o)
		require.NoError(t, err)
		require.Equal(t, dir, again)
	}
	require.Empty(t, h.forget())
}

func TestDownloadShardsAndAdapters(t *testing.T) {
	adapter := map[string][]byte{"adapter_config.json": []byte(`{}`), "adapter_model.safetensors": []byte("x"), "chat_template.jinja": []byte("{{ x }}")}
	network := maps.Clone(adapter)
	network["prompt_encoder.safetensors"] = []byte("y")
	for name, files := range map[string]map[string][]byte{"shards": shardedModel(), "adapter": adapter, "adapter with a network": network} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHub(t, maps.Clone(files))
			h.files["pytorch_model.bin"] = []byte("not wanted")
			cache := t.TempDir()
			dir, err := h.resolve(t, Options{CacheDir: cache})
			require.NoError(t, err)
			requireFolder(t, files, dir)
			again, err := h.resolve(t, Options{CacheDir: cache, Offline: true})
			require.NoError(t, err)
			require.Equal(t, dir, again)
		})
	}
}

func TestNoWeights(t *testing.T) {
	for _, files := range []map[string][]byte{tinyModel(), shardedModel()} {
		h := newFakeHub(t, files)
		cache := t.TempDir()
		dir, err := h.resolve(t, Options{CacheDir: cache, NoWeights: true})
		require.NoError(t, err)
		require.Zero(t, h.count("safetensors"))
		require.FileExists(t, filepath.Join(dir, "config.json"))
		_, err = h.resolve(t, Options{CacheDir: cache, NoWeights: true, Offline: true})
		require.NoError(t, err)
		_, err = h.resolve(t, Options{CacheDir: cache, Offline: true})
		require.ErrorContains(t, err, "model.safetensors: file does not exist")
	}
}

func TestRevision(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	cache := t.TempDir()
	_, err := h.resolve(t, Options{CacheDir: cache, Revision: "refs/pr/1"})
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(cache, "models--org--tiny", "refs", "refs", "pr", "1"))
	_, err = h.resolve(t, Options{CacheDir: cache, Offline: true})
	require.ErrorContains(t, err, "it is not in the cache")
}

func TestOfflineSaysWhatIsMissing(t *testing.T) {
	h := newFakeHub(t, shardedModel())
	for _, variable := range []string{"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} {
		cache := t.TempDir()
		t.Setenv("HF_HUB_CACHE", cache)
		t.Setenv(variable, "true")
		_, err := Resolve(t.Context(), testID, Options{Endpoint: h.hub.URL})
		require.ErrorIs(t, err, fs.ErrNotExist)
		for _, want := range []string{`model "org/tiny"`, "no folder ", "it is not in the cache", variable + " is set",
			"hf download org/tiny --revision main", "copy models--org--tiny from its cache into " + cache} {
			require.ErrorContains(t, err, want)
		}
		require.Empty(t, h.forget())
		t.Setenv(variable, "0")
	}
	cache := t.TempDir()
	dir, err := h.resolve(t, Options{CacheDir: cache})
	require.NoError(t, err)
	shard := "model-00002-of-00002.safetensors"
	blob, err := filepath.EvalSymlinks(filepath.Join(dir, shard))
	require.NoError(t, err)
	require.NoError(t, os.Remove(blob)) // what a cleaning tool may do
	_, err = h.resolve(t, Options{CacheDir: cache, Offline: true})
	require.ErrorContains(t, err, "the cache lacks "+filepath.Join(dir, shard))
	require.ErrorIs(t, err, fs.ErrNotExist)

	_, err = h.resolve(t, Options{CacheDir: cache}) // online repairs it
	require.NoError(t, err)
	requireFolder(t, shardedModel(), dir)
}

func TestUnreachableHubFallsBackToCache(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	cache := t.TempDir()
	dir, err := h.resolve(t, Options{CacheDir: cache})
	require.NoError(t, err)
	var warned error
	o := Options{CacheDir: cache, Warn: func(err error) { warned = err }}

	h.breakWith(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(502); return true })
	again, err := h.resolve(t, o)
	require.NoError(t, err)
	require.Equal(t, dir, again)
	require.ErrorContains(t, warned, "using the cache, since the hub cannot be reached")
	require.ErrorContains(t, warned, "status 502")

	h.hub.Close()
	warned = nil
	again, err = h.resolve(t, o)
	require.NoError(t, err)
	require.Equal(t, dir, again)
	require.ErrorContains(t, warned, "refused")
	_, err = h.resolve(t, Options{CacheDir: t.TempDir()})
	require.ErrorContains(t, err, "refused")
	require.ErrorContains(t, err, "it is not in the cache")
}

// A commit is fixed, but only a listing tells which files it has; the ref moves
// only when the new snapshot is whole.
func TestUpdateFailsLeavesOldRef(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	cache := t.TempDir()
	dir, err := h.resolve(t, Options{CacheDir: cache})
	require.NoError(t, err)
	h.commit = strings.Repeat("f", 40)
	h.files["model.safetensors"] = []byte("new weights")
	h.breakWith(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "model.safetensors") {
			w.WriteHeader(403)
			return true
		}
		return false
	})
	_, err = h.resolve(t, Options{CacheDir: cache})
	require.ErrorIs(t, err, fs.ErrPermission)
	old, err := h.resolve(t, Options{CacheDir: cache, Offline: true})
	require.NoError(t, err)
	require.Equal(t, dir, old)
	requireFolder(t, tinyModel(), old)
}

func TestConcurrentResolvers(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	cache := t.TempDir()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := h.resolve(t, Options{CacheDir: cache}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.Equal(t, 1, h.count("GET /model.safetensors"), "only one of them downloads")
	requireFolder(t, tinyModel(), filepath.Join(cache, "models--org--tiny", "snapshots", testCommit))
}

func TestCopiesWhereThereAreNoLinks(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	s, err := newSettings(testID, Options{CacheDir: t.TempDir(), Endpoint: h.hub.URL})
	require.NoError(t, err)
	s.symlink = func(string, string) error { return errors.ErrUnsupported }
	dir, err := s.resolve(t.Context())
	require.NoError(t, err)
	requireFolder(t, tinyModel(), dir)
	info, err := os.Lstat(filepath.Join(dir, "model.safetensors"))
	require.NoError(t, err)
	require.True(t, info.Mode().IsRegular())
}

func TestHostileHub(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(h *fakeHub)
		want   string
	}{
		"path in listing":   {func(h *fakeHub) { h.extra = []string{"../../x.safetensors"} }, `file name "../../x.safetensors" leads out`},
		"absolute":          {func(h *fakeHub) { h.extra = []string{"/etc/config.json"} }, "leads out"},
		"backslash":         {func(h *fakeHub) { h.extra = []string{`..\config.json`} }, "leads out"},
		"not canonical":     {func(h *fakeHub) { h.extra = []string{"a/../config.json"} }, "leads out"},
		"commit":            {func(h *fakeHub) { h.commit = "../../x" }, "want a commit of 40 hex digits"},
		"no model":          {func(h *fakeHub) { delete(h.files, "config.json") }, "neither config.json nor adapter_config.json"},
		"no weights":        {func(h *fakeHub) { delete(h.files, "model.safetensors"); h.extra = []string{"pytorch_model.bin"} }, "weight files it has: pytorch_model.bin"},
		"listed, not there": {func(h *fakeHub) { h.extra = []string{"generation_config.json"} }, "not this file"},
		"shard outside": {func(h *fakeHub) {
			h.files = shardedModel()
			h.files["model.safetensors.index.json"] = []byte(`{"weight_map":{"a":"../../../x"}}`)
		}, "leads out of the folder"},
		"shard not in listing": {func(h *fakeHub) {
			h.files = shardedModel()
			delete(h.files, "model-00002-of-00002.safetensors")
		}, "lists model-00002-of-00002.safetensors, which the repository does not have"},
		"etag": {func(h *fakeHub) {
			h.breakWith(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead {
					w.Header().Set("Etag", `"../../../x"`)
					w.Header().Set("Content-Length", "3")
				}
				return r.Method == http.MethodHead
			})
		}, "want an ETag that is a SHA-256 or a git hash"},
		"no size": {func(h *fakeHub) {
			h.breakWith(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead {
					w.Header().Set("X-Linked-Etag", strings.Repeat("a", 64))
					http.Redirect(w, r, "http://127.0.0.2/", http.StatusFound)
				}
				return r.Method == http.MethodHead
			})
		}, "does not say the file's size"},
		"other commit": {func(h *fakeHub) {
			h.breakWith(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead {
					w.Header().Set("X-Repo-Commit", "abc")
				}
				return r.Method == http.MethodHead
			})
		}, `answers for commit "abc"`},
		"listing not JSON": {func(h *fakeHub) {
			h.breakWith(func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, "<html>"); return true })
		}, "not what a hub says"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHub(t, tinyModel())
			tc.change(h)
			root := t.TempDir()
			cache := filepath.Join(root, "a", "cache")
			_, err := h.resolve(t, Options{CacheDir: cache})
			require.ErrorContains(t, err, tc.want)
			require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				require.NotContains(t, d.Name(), "x.safetensors")
				return err
			}))
			entries, err := os.ReadDir(root)
			require.NoError(t, err)
			require.LessOrEqual(t, len(entries), 1)
		})
	}
}

func TestCorruptRef(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	cache := t.TempDir()
	ref := filepath.Join(cache, "models--org--tiny", "refs", "main")
	require.NoError(t, os.MkdirAll(filepath.Dir(ref), 0o777))
	require.NoError(t, os.WriteFile(ref, []byte("../../../etc"), 0o666))
	_, err := h.resolve(t, Options{CacheDir: cache, Offline: true})
	require.ErrorContains(t, err, "want a commit of 40 hex digits")
	_, err = h.resolve(t, Options{CacheDir: cache})
	require.NoError(t, err)
}

func TestCancelled(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	ctx, cancel := context.WithCancel(t.Context())
	s, err := newSettings(testID, Options{CacheDir: t.TempDir(), Endpoint: h.hub.URL, Progress: func(p Progress) {
		if p.File == "model.safetensors" && p.Done > 0 {
			cancel()
		}
	}})
	require.NoError(t, err)
	_, err = s.resolve(ctx)
	if err != nil { // the last bytes may already have been on the way
		require.ErrorIs(t, err, context.Canceled)
	}
	cancel()
	_, err = Resolve(ctx, testID, Options{CacheDir: t.TempDir(), Endpoint: h.hub.URL})
	require.ErrorIs(t, err, context.Canceled)
}
