package hub

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const defaultEndpoint = "https://huggingface.co"

// settings are the options of one call with the environment worked in.
type settings struct {
	Options
	id       string
	revision string
	cache    string // the cache folder
	endpoint string
	token    string
	offline  string // what forbids requests; "" if nothing does

	// Tests make these short.
	delay   time.Duration                // ahead of the first repetition, then doubled
	stall   time.Duration                // without a byte, then the connection is given up
	symlink func(old, name string) error // os.Symlink
}

// These are the timing that a call starts with; tests of settings replace the
// fields.
const (
	firstDelay = time.Second
	stallLimit = time.Minute
)

func newSettings(id string, o Options) (*settings, error) {
	s := &settings{Options: o, id: id, delay: firstDelay, stall: stallLimit, symlink: os.Symlink}
	s.revision = cmp.Or(o.Revision, "main")
	if !filepath.IsLocal(filepath.FromSlash(s.revision)) || strings.ContainsAny(s.revision, "\\:?*\x00") {
		return s, fmt.Errorf("revision %q is no branch, tag or commit", s.revision)
	}
	home, err := hfHome()
	if err != nil && o.CacheDir == "" && os.Getenv("HF_HUB_CACHE") == "" {
		return s, err
	}
	s.cache = cmp.Or(o.CacheDir, expandHome(os.Getenv("HF_HUB_CACHE")), expandHome(os.Getenv("HUGGINGFACE_HUB_CACHE")), filepath.Join(home, "hub"))
	s.endpoint = strings.TrimRight(cmp.Or(o.Endpoint, os.Getenv("HF_ENDPOINT"), defaultEndpoint), "/")
	if u, err := url.Parse(s.endpoint); err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return s, fmt.Errorf("endpoint %q is no http address", s.endpoint)
	}
	if s.token, err = findToken(o.Token, home); err != nil {
		return s, err
	}
	switch {
	case o.Offline:
		s.offline = "Options.Offline is set"
	case truthy("HF_HUB_OFFLINE"):
		s.offline = "HF_HUB_OFFLINE is set"
	case truthy("TRANSFORMERS_OFFLINE"):
		s.offline = "TRANSFORMERS_OFFLINE is set"
	}
	return s, nil
}

func (s *settings) httpClient() *http.Client {
	if s.Client != nil {
		c := *s.Client
		return &c
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 30 * time.Second
	t.DisableCompression = true // sizes and hashes are those of the file
	return &http.Client{Transport: t}
}

// hfHome is huggingface_hub's folder for cache and token.
func hfHome() (string, error) {
	if dir := os.Getenv("HF_HOME"); dir != "" {
		return expandHome(dir), nil
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(expandHome(dir), "huggingface"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no place for the cache: set HF_HOME or HF_HUB_CACHE: %w", err)
	}
	return filepath.Join(home, ".cache", "huggingface"), nil
}

// findToken returns "" if there is no token anywhere.
func findToken(given, home string) (string, error) {
	if t := cmp.Or(given, os.Getenv("HF_TOKEN"), os.Getenv("HUGGING_FACE_HUB_TOKEN")); t != "" {
		return strings.TrimSpace(t), nil
	}
	path := expandHome(os.Getenv("HF_TOKEN_PATH"))
	if path == "" && home != "" {
		path = filepath.Join(home, "token")
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("access token: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

func truthy(name string) bool {
	return slices.Contains([]string{"1", "ON", "YES", "TRUE"}, strings.ToUpper(os.Getenv(name)))
}

// expandHome replaces a leading "~/", as a shell would.
func expandHome(path string) string {
	rest, ok := strings.CutPrefix(path, "~/")
	if !ok {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return path
	}
	return filepath.Join(home, rest)
}
