package hub

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	testCommit = "0123456789abcdef0123456789abcdef01234567"
	testID     = "org/tiny"
)

// answer may answer a request in the hub's stead; it reports whether it did.
type answer func(w http.ResponseWriter, r *http.Request) bool

// fakeHub imitates the hub (API, metadata, small files) and, on another host,
// its storage (large files), as huggingface.co and its CDN do.
type fakeHub struct {
	hub, storage *httptest.Server
	commit       string
	files        map[string][]byte
	extra        []string // names that only the listing has
	token        string   // wanted by the hub if set

	mu       sync.Mutex
	broken   answer
	requests []string // "GET /path [Range]"
	leaked   []string // Authorization headers that reached the storage
}

func newFakeHub(t *testing.T, files map[string][]byte) *fakeHub {
	h := &fakeHub{commit: testCommit, files: files}
	h.storage = httptest.NewServer(http.HandlerFunc(h.serveStorage)) // first: the hub's handler reads it
	h.hub = httptest.NewServer(http.HandlerFunc(h.serveHub))
	t.Cleanup(h.hub.Close)
	t.Cleanup(h.storage.Close)
	clearEnv(t)
	return h
}

func clearEnv(t *testing.T) {
	for _, name := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
		"HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME"} {
		t.Setenv(name, "")
	}
	t.Setenv("HF_HOME", filepath.Join(t.TempDir(), "hf"))
}

func isLarge(name string) bool { return strings.HasSuffix(name, ".safetensors") }

func etagOf(name string, content []byte) string {
	if isLarge(name) {
		return fmt.Sprintf("%x", sha256.Sum256(content))
	}
	return fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(content), content)))
}

func (h *fakeHub) record(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.Path, r.Header.Get("Range"))))
}

func (h *fakeHub) breakWith(a answer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = a
}

func (h *fakeHub) breaks(w http.ResponseWriter, r *http.Request) bool {
	h.mu.Lock()
	broken := h.broken
	h.mu.Unlock()
	return broken != nil && broken(w, r)
}

// forget drops the requests seen so far and returns them.
func (h *fakeHub) forget() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := h.requests
	h.requests = nil
	return seen
}

// count returns how many requests contain the text.
func (h *fakeHub) count(text string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, r := range h.requests {
		if strings.Contains(r, text) {
			n++
		}
	}
	return n
}

func (h *fakeHub) serveHub(w http.ResponseWriter, r *http.Request) {
	h.record(r)
	if h.breaks(w, r) {
		return
	}
	if h.token != "" && r.Header.Get("Authorization") != "Bearer "+h.token {
		w.Header().Set("X-Error-Code", "RepoNotFound")
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if strings.HasPrefix(r.URL.Path, "/api/models/"+testID+"/revision/") {
		h.serveListing(w)
		return
	}
	if r.URL.Path == "/api/models/"+testID+"/tree/"+h.commit {
		h.serveTree(w)
		return
	}
	if name, ok := strings.CutPrefix(r.URL.Path, "/api/resolve-cache/"); ok && h.files[name] != nil {
		w.Header().Set("X-Repo-Commit", h.commit)
		w.Header().Set("Etag", `"`+etagOf(name, h.files[name])+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.files[name]))
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/"+testID+"/resolve/"+h.commit+"/")
	content, found := h.files[name]
	if !ok || !found {
		w.Header().Set("X-Error-Code", "EntryNotFound")
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("X-Repo-Commit", h.commit)
	if !isLarge(name) {
		http.Redirect(w, r, "/api/resolve-cache/"+name, http.StatusTemporaryRedirect)
		return
	}
	w.Header().Set("X-Linked-Etag", `"`+etagOf(name, content)+`"`)
	w.Header().Set("X-Linked-Size", fmt.Sprint(len(content)))
	http.Redirect(w, r, h.storage.URL+"/"+name, http.StatusFound)
}

func (h *fakeHub) serveListing(w http.ResponseWriter) {
	type sibling struct {
		Name string `json:"rfilename"`
	}
	var list []sibling
	for name := range h.files {
		list = append(list, sibling{name})
	}
	for _, name := range h.extra {
		list = append(list, sibling{name})
	}
	json.NewEncoder(w).Encode(map[string]any{"sha": h.commit, "siblings": list, "id": testID})
}

// serveTree is for Python, which asks for more than Resolve does.
func (h *fakeHub) serveTree(w http.ResponseWriter) {
	list := []map[string]any{}
	for name, content := range h.files {
		entry := map[string]any{"type": "file", "path": name, "size": len(content), "oid": etagOf("small", content)}
		if isLarge(name) {
			entry["lfs"] = map[string]any{"oid": etagOf(name, content), "size": len(content), "pointerSize": 130}
		}
		list = append(list, entry)
	}
	json.NewEncoder(w).Encode(list)
}

func (h *fakeHub) serveStorage(w http.ResponseWriter, r *http.Request) {
	h.record(r)
	if a := r.Header.Get("Authorization"); a != "" {
		h.mu.Lock()
		h.leaked = append(h.leaked, a)
		h.mu.Unlock()
	}
	if h.breaks(w, r) {
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.files[strings.TrimPrefix(r.URL.Path, "/")]))
}

// resolve is Resolve against the fake hub with short pauses.
func (h *fakeHub) resolve(t *testing.T, o Options) (string, error) {
	t.Helper()
	o.Endpoint = h.hub.URL
	s, err := newSettings(testID, o)
	require.NoError(t, err)
	s.delay, s.stall = time.Millisecond, 2*time.Second
	return s.resolve(context.Background())
}

func tinyModel() map[string][]byte {
	return map[string][]byte{
		"config.json":       []byte(`{"model_type":"llama"}`),
		"tokenizer.json":    []byte(`{}`),
		"model.safetensors": bytes.Repeat([]byte("weights "), 100_000),
	}
}

func shardedModel() map[string][]byte {
	return map[string][]byte{
		"config.json":                      []byte(`{}`),
		"model.safetensors.index.json":     []byte(`{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}`),
		"model-00001-of-00002.safetensors": []byte("first"),
		"model-00002-of-00002.safetensors": []byte("second"),
	}
}

// requireFolder compares a folder's files, links followed, with want.
func requireFolder(t *testing.T, want map[string][]byte, dir string) {
	t.Helper()
	got := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		got[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
	}
	require.Equal(t, want, got)
}
