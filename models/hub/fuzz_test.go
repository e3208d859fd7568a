package hub

import (
	"path/filepath"
	"strings"
	"testing"
)

// FuzzFileName: a name that is accepted stays in its folder and names one
// file only.
func FuzzFileName(f *testing.F) {
	for _, s := range []string{"config.json", "a/b.json", "../x", "a/../../x", "/x", `..\x`, "C:x", ".", "", "a//b", "a/./b", "a\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if checkFileName(name) != nil {
			return
		}
		joined := filepath.Join("dir", filepath.FromSlash(name))
		rel, err := filepath.Rel("dir", joined)
		if err != nil || !filepath.IsLocal(rel) || rel == "." || filepath.ToSlash(rel) != name {
			t.Fatalf("%q became %q", name, joined)
		}
	})
}

// FuzzID: an accepted id gives one folder directly in the cache.
func FuzzID(f *testing.F) {
	for _, s := range []string{"org/name", "gpt2", "a/b/c", "../x", "a..b", "a--b", "-a", "a.git", "org/", "a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if checkID(id) != nil {
			return
		}
		s := &settings{id: id, cache: "cache"}
		if filepath.Dir(s.repo()) != "cache" || strings.Count(filepath.Base(s.repo()), "--") != 1+strings.Count(id, "/") {
			t.Fatalf("%q became %q", id, s.repo())
		}
	})
}
