// Package hub finds model and adapter folders: on disk, in the Hugging Face
// cache, or on the Hugging Face hub, from where it downloads into that cache.
//
// # Cache
//
// The cache is the one of Python's huggingface_hub, in the same layout, and
// both may use it at once:
//
//	models--org--name/
//	  refs/main                     the commit that a branch or tag means
//	  blobs/<etag>                  contents; <etag>.incomplete while downloading
//	  snapshots/<commit>/<file>     symbolic links to blobs
//	.locks/models--org--name/<etag>.lock
//
// # Environment
//
// HF_HUB_CACHE names the cache, else HF_HOME/hub, else
// ~/.cache/huggingface/hub. HF_ENDPOINT replaces https://huggingface.co.
// HF_TOKEN is the access token, else the content of the file HF_TOKEN_PATH,
// else of HF_HOME/token. HF_HUB_OFFLINE=1 or TRANSFORMERS_OFFLINE=1 forbids
// any request.
//
// # Integrity
//
// A download counts only when its size and its hash (SHA-256 for large files,
// the git blob hash for small ones) are what the hub announced; only then does
// it get its name in the cache. An interrupted download is resumed.
package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Options say where and how to look. The zero value follows the environment
// as Python's huggingface_hub does.
type Options struct {
	// Revision is a branch, a tag or a 40-digit commit; "" is main.
	Revision string
	// CacheDir is the cache folder; "" asks the environment.
	CacheDir string
	// Endpoint is the hub's address; "" asks the environment.
	Endpoint string
	// Token is the access token; "" asks the environment. It is sent to
	// Endpoint only, never along a redirect to another host.
	Token string
	// Offline forbids any request. The environment can also forbid them.
	Offline bool
	// NoWeights leaves out *.safetensors: configuration and tokenizer only.
	NoWeights bool
	// Progress, if set, is called while files are downloaded: at the start
	// and the end of each and some times a second between.
	Progress func(Progress)
	// Warn, if set, is told when the hub could not be reached and Resolve
	// went on with what the cache holds.
	Warn func(error)
	// Client makes the requests; nil is a client with sensible timeouts that
	// uses the proxy of the environment. Its CheckRedirect is replaced.
	Client *http.Client
}

// Progress tells how far the download of one file is.
type Progress struct {
	File        string // such as "model-00001-of-00002.safetensors"
	Done, Total int64  // bytes of this file; Done starts above 0 if resumed
	AllDone     int64  // bytes of all files of this batch, finished and current
	AllTotal    int64  // (a sharded model has two batches: the small files, then the shards)
}

// Resolve returns the folder of a model or an adapter, with config.json and
// model.safetensors (or its index and shards), or adapter_config.json and
// adapter_model.safetensors (with prompt_encoder.safetensors, if there is one), and the
// tokenizer's files if there are any.
//
// nameOrPath is a path if it is absolute, starts with "." or "~/", or names
// an existing folder, which is returned as it is, unchecked. Otherwise it is a
// hub id, "org/name" or "name": Resolve asks the hub what the revision
// contains, downloads what the cache lacks, and returns the snapshot's folder.
// If the hub cannot be reached and the cache holds the revision whole, that is
// returned and o.Warn told. Offline, Resolve makes no request.
//
// Errors wrap fs.ErrNotExist for a missing folder, repository, revision or
// file (in the cache, if offline), fs.ErrPermission where a token or the
// acceptance of conditions is wanted, and ctx.Err() if ctx ended; what was
// downloaded until then is kept and resumed.
func Resolve(ctx context.Context, nameOrPath string, o Options) (dir string, err error) {
	path := expandHome(nameOrPath)
	if info, err := os.Stat(path); nameOrPath != "" && err == nil {
		if !info.IsDir() {
			return "", fmt.Errorf("hub: model %q: it is a file, want a folder", nameOrPath)
		}
		return path, nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	if isPath(nameOrPath) {
		return "", fmt.Errorf("hub: model %q: there is no folder %s: %w", nameOrPath, abs, fs.ErrNotExist)
	}
	if err := checkID(nameOrPath); err != nil {
		return "", fmt.Errorf("hub: model %q: there is no folder %s, and it is no hub id: %w", nameOrPath, abs, err)
	}
	s, err := newSettings(nameOrPath, o)
	if err == nil {
		dir, err = s.resolve(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("hub: model %q (no folder %s; hub revision %s): %w", nameOrPath, abs, s.revision, err)
	}
	return dir, nil
}

// isPath tells what can only be meant as a path.
func isPath(s string) bool {
	return filepath.IsAbs(s) || strings.HasPrefix(s, ".") || strings.HasPrefix(s, "~") || strings.HasPrefix(s, "/") ||
		strings.Contains(s, `\`) || strings.HasSuffix(s, "/")
}

var idPattern = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// checkID follows huggingface_hub's validate_repo_id.
func checkID(id string) error {
	switch {
	case id == "":
		return errors.New("it is empty")
	case strings.Count(id, "/") > 1:
		return fmt.Errorf("want \"org/name\" or \"name\": %w", fs.ErrNotExist)
	case len(id) > 96+1+96 || !idPattern.MatchString(id) || strings.HasSuffix(id, "-") || strings.HasSuffix(id, ".") ||
		strings.Contains(id, "--") || strings.Contains(id, "..") || strings.HasSuffix(id, ".git"):
		return errors.New("ids have letters, digits, \"_\", \"-\" and \".\", no \"--\" or \"..\", and do not end in \"-\", \".\" or \".git\"")
	}
	return nil
}
