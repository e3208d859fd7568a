package hub

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// weights is a request to the storage for the large file.
func weights(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Path == "/model.safetensors"
}

// cut answers with the announced length and stops after n bytes.
func cut(w http.ResponseWriter, content []byte, n int) {
	w.Header().Set("Content-Length", fmt.Sprint(len(content)))
	w.Write(content[:n])
	panic(http.ErrAbortHandler)
}

func TestBrokenDownloads(t *testing.T) {
	good := tinyModel()["model.safetensors"]
	wrong := append([]byte("X"), good[1:]...)
	for name, tc := range map[string]struct {
		broken func(n int, w http.ResponseWriter, r *http.Request) bool // n counts requests for the weights
		want   string                                                   // "" if it ends well
		gets   int                                                      // requests for the weights
	}{
		"body breaks off, resumed": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 0 {
				cut(w, good, 300_000)
			}
			return false
		}, "", 2},
		"breaks off, no ranges": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 0 {
				cut(w, good, 300_000)
			}
			w.Write(good)
			return true
		}, "", 2},
		"breaks off for ever, no ranges": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			cut(w, good, 300_000)
			return true
		}, "begun again 3 times, and it still breaks off", 5},
		"never a byte": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			panic(http.ErrAbortHandler)
		}, "EOF", maxRetries + 1},
		"refuses to resume": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 0 {
				cut(w, good, 300_000)
			}
			if r.Header.Get("Range") != "" {
				w.WriteHeader(416)
				return true
			}
			return false
		}, "", 3},
		"other range": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 0 {
				cut(w, good, 300_000)
			}
			w.Header().Set("Content-Range", "bytes 5-10/800000")
			w.WriteHeader(206)
			return true
		}, `asked for bytes from`, 2},
		"too long": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.Write(append(good, 'x'))
			return true
		}, "has more than the 800000 bytes that the hub announced", 1},
		"too short": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(416)
			} else {
				w.Write(good[:700_000])
			}
			return true
		}, "begun again 3 times", 8},
		"wrong hash": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.Write(wrong)
			return true
		}, "wrong content", 1},
		"encoded": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Encoding", "br")
			w.Write(good)
			return true
		}, `encoded the file as "br"`, 1},
		"429 twice": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n < 2 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(429)
			}
			return n < 2
		}, "", 3},
		"503 for ever": {func(n int, w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(503); return true }, "status 503", maxRetries + 1},
		"429 for an hour": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
			return true
		}, "status 429", 1},
		"403": {func(n int, w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(403); return true }, "status 403", 1},
		"stalls": {func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(good)))
				w.Write(good[:100_000])
				w.(http.Flusher).Flush()
				<-r.Context().Done()
			}
			return n == 0
		}, "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHub(t, tinyModel())
			var n atomic.Int32
			h.breakWith(func(w http.ResponseWriter, r *http.Request) bool {
				if !weights(r) {
					return false
				}
				return tc.broken(int(n.Add(1))-1, w, r)
			})
			cache := t.TempDir()
			s, err := newSettings(testID, Options{CacheDir: cache, Endpoint: h.hub.URL})
			require.NoError(t, err)
			s.delay, s.stall = time.Millisecond, 300*time.Millisecond
			dir, err := s.resolve(t.Context())
			require.Equal(t, tc.gets, h.count("GET /model.safetensors"))
			if tc.want == "" {
				require.NoError(t, err)
				requireFolder(t, tinyModel(), dir)
				return
			}
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, "download model.safetensors")
			require.NoFileExists(t, s.blob(etagOf("model.safetensors", good)))
			require.NoFileExists(t, filepath.Join(s.snapshot(testCommit), "model.safetensors"))

			// Whatever was left, a sound hub mends it.
			h.breakWith(nil)
			dir, err = s.resolve(t.Context())
			require.NoError(t, err)
			requireFolder(t, tinyModel(), dir)
		})
	}
}

// A part file of an earlier process is resumed; a damaged one is noticed and
// fetched again.
func TestResume(t *testing.T) {
	good := tinyModel()["model.safetensors"]
	etag := etagOf("model.safetensors", good)
	for name, tc := range map[string]struct {
		part []byte
		want []string // ranges
	}{
		"half":        {good[:400_000], []string{"bytes=400000-"}},
		"all":         {good, nil},
		"too long":    {append(bytes.Clone(good), 'x'), []string{""}},
		"damaged":     {append([]byte("X"), good[1:400_000]...), []string{"bytes=400000-", ""}},
		"damaged all": {append([]byte("X"), good[1:]...), []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHub(t, tinyModel())
			cache := t.TempDir()
			blobs := filepath.Join(cache, "models--org--tiny", "blobs")
			require.NoError(t, os.MkdirAll(blobs, 0o777))
			require.NoError(t, os.WriteFile(filepath.Join(blobs, etag+".incomplete"), tc.part, 0o666))
			dir, err := h.resolve(t, Options{CacheDir: cache})
			require.NoError(t, err)
			requireFolder(t, tinyModel(), dir)
			var ranges []string
			for _, r := range h.forget() {
				if rest, ok := strings.CutPrefix(r, "GET /model.safetensors"); ok {
					ranges = append(ranges, strings.TrimSpace(rest))
				}
			}
			require.Equal(t, tc.want, ranges)
			require.NoFileExists(t, filepath.Join(blobs, etag+".incomplete"))
		})
	}
}

func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		status      int
		code, token string
		want        string
		is          error
	}{
		"401 without token": {401, "RepoNotFound", "", "it does not exist, or it is private: check the spelling, or set HF_TOKEN", fs.ErrPermission},
		"401 with token":    {401, "", "hf_x", "the access token is wrong or has expired", fs.ErrPermission},
		"gated":             {403, "GatedRepo", "hf_x", "access has conditions: accept them at", fs.ErrPermission},
		"403":               {403, "", "hf_x", "does not allow it", fs.ErrPermission},
		"404 repository":    {404, "RepoNotFound", "", "no such model", fs.ErrNotExist},
		"404 revision":      {404, "RevisionNotFound", "", "the hub has the model, but not this revision", fs.ErrNotExist},
		"400":               {400, "", "", "status 400", nil},
		"500":               {500, "", "", "status 500", nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHub(t, tinyModel())
			h.breakWith(func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("X-Error-Code", tc.code)
				w.Header().Set("X-Error-Message", "told so")
				w.WriteHeader(tc.status)
				return true
			})
			_, err := h.resolve(t, Options{CacheDir: t.TempDir(), Token: tc.token})
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, "the hub says: told so")
			require.NotContains(t, err.Error(), "hf_x")
			if tc.is != nil {
				require.ErrorIs(t, err, tc.is)
			}
			tries := 1
			if tc.status == 500 {
				tries = maxRetries + 1
			}
			require.Equal(t, tries, h.count("/revision/"))
		})
	}
}

func TestToken(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "token")
	require.NoError(t, os.WriteFile(path, []byte(" hf_secret\n"), 0o600))
	for name, set := range map[string]func(t *testing.T, o *Options){
		"option":        func(t *testing.T, o *Options) { o.Token = "hf_secret" },
		"HF_TOKEN":      func(t *testing.T, o *Options) { t.Setenv("HF_TOKEN", "hf_secret") },
		"HF_TOKEN_PATH": func(t *testing.T, o *Options) { t.Setenv("HF_TOKEN_PATH", path) },
		"HF_HOME":       func(t *testing.T, o *Options) { t.Setenv("HF_HOME", dir) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHub(t, tinyModel())
			h.token = "hf_secret"
			o := Options{CacheDir: t.TempDir()}
			_, err := h.resolve(t, o)
			require.ErrorIs(t, err, fs.ErrPermission)
			set(t, &o)
			got, err := h.resolve(t, o)
			require.NoError(t, err)
			requireFolder(t, tinyModel(), got)
			require.Empty(t, h.leaked, "the storage is another host")
		})
	}
}

func TestCacheFolder(t *testing.T) {
	clearEnv(t)
	home := os.Getenv("HF_HOME")
	check := func(want string, o Options) {
		t.Helper()
		s, err := newSettings(testID, o)
		require.NoError(t, err)
		require.Equal(t, filepath.FromSlash(want), s.cache)
		require.Equal(t, "https://huggingface.co", s.endpoint)
	}
	check(home+"/hub", Options{})
	t.Setenv("HUGGINGFACE_HUB_CACHE", "/legacy")
	check("/legacy", Options{})
	t.Setenv("HF_HUB_CACHE", "/new")
	check("/new", Options{})
	check("/option", Options{CacheDir: "/option"})
	clearEnv(t)
	t.Setenv("HF_HOME", "")
	t.Setenv("HOME", "/home/me")
	check("/home/me/.cache/huggingface/hub", Options{})
	t.Setenv("XDG_CACHE_HOME", "/xdg")
	check("/xdg/huggingface/hub", Options{})
	t.Setenv("HF_HOME", "~/hf")
	check("/home/me/hf/hub", Options{})
}

func TestPartCannotBeWritten(t *testing.T) {
	h := newFakeHub(t, tinyModel())
	cache := t.TempDir()
	// A folder in the part's place stands for a file that cannot be written.
	part := filepath.Join(cache, "models--org--tiny", "blobs", etagOf("model.safetensors", h.files["model.safetensors"])+".incomplete")
	require.NoError(t, os.MkdirAll(part, 0o777))
	_, err := h.resolve(t, Options{CacheDir: cache})
	require.ErrorContains(t, err, "download model.safetensors")
	var pathErr *fs.PathError
	require.True(t, errors.As(err, &pathErr))
	require.Equal(t, part, pathErr.Path)
}

func TestLockWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	unlock, err := lock(t.Context(), path)
	require.NoError(t, err)
	got := make(chan struct{})
	go func() {
		defer close(got)
		second, err := lock(t.Context(), path)
		if err != nil {
			t.Error(err)
			return
		}
		second()
	}()
	select {
	case <-got:
		t.Fatal("two holders of one lock")
	case <-time.After(120 * time.Millisecond):
	}
	unlock()
	<-got
}
