package hub

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/gopeft/gopeft/internal/atomicfile"
)

var commitPattern = regexp.MustCompile(`^[0-9a-f]{40}$`)

// repo is the model's folder in the cache.
func (s *settings) repo() string {
	return filepath.Join(s.cache, "models--"+strings.ReplaceAll(s.id, "/", "--"))
}

func (s *settings) snapshot(commit string) string {
	return filepath.Join(s.repo(), "snapshots", commit)
}

func (s *settings) blob(etag string) string { return filepath.Join(s.repo(), "blobs", etag) }

func (s *settings) refPath() string {
	return filepath.Join(s.repo(), "refs", filepath.FromSlash(s.revision))
}

// cachedCommit returns the commit that the revision means according to the
// cache; an error wrapping fs.ErrNotExist if the cache does not say.
func (s *settings) cachedCommit() (string, error) {
	if commitPattern.MatchString(s.revision) {
		return s.revision, nil
	}
	text, err := os.ReadFile(s.refPath())
	if err != nil {
		return "", err
	}
	commit := strings.TrimSpace(string(text))
	if !commitPattern.MatchString(commit) {
		return "", fmt.Errorf("%s: want a commit of 40 hex digits, got %.50q", s.refPath(), commit)
	}
	return commit, nil
}

// saveRef notes what the revision means, once its snapshot is whole.
func (s *settings) saveRef(commit string) error {
	if s.revision == commit {
		return nil
	}
	if old, err := s.cachedCommit(); err == nil && old == commit {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(s.refPath()), 0o777); err != nil {
		return err
	}
	return atomicfile.WriteBytes(s.refPath(), []byte(commit))
}

// fromCache returns the snapshot if it is usable as it is. The error says
// which file is missing and wraps fs.ErrNotExist.
func (s *settings) fromCache() (string, error) {
	commit, err := s.cachedCommit()
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("it is not in the cache: %w", err)
	}
	if err != nil {
		return "", err
	}
	snapshot := s.snapshot(commit)
	file, err := s.missing(snapshot)
	if err != nil {
		return "", err
	}
	if file != "" {
		return "", fmt.Errorf("the cache lacks %s: %w", filepath.Join(snapshot, filepath.FromSlash(file)), fs.ErrNotExist)
	}
	return snapshot, nil
}

// howToGet ends the error of an offline call.
func (s *settings) howToGet() string {
	return fmt.Sprintf("unset that and try again with a network, or run \"hf download %s --revision %s\" on a machine that has one and copy %s from its cache into %s",
		s.id, s.revision, filepath.Base(s.repo()), s.cache)
}

// present says whether the snapshot has the file. A link to a blob that is
// gone is not a file.
func (s *settings) present(commit, name string) bool {
	_, err := os.Stat(filepath.Join(s.snapshot(commit), filepath.FromSlash(name)))
	return err == nil
}

// link makes the snapshot's file a relative symbolic link to the blob, or a
// copy where the system makes no links.
func (s *settings) link(commit, name, etag string) error {
	file := filepath.Join(s.snapshot(commit), filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
		return err
	}
	target, err := filepath.Rel(filepath.Dir(file), s.blob(etag))
	if err != nil {
		return err
	}
	// A link under a new name is renamed into place, so that another process
	// never finds the name missing, even where it replaces a dead link.
	temp := file + ".link-" + rand.Text()
	if err := s.symlink(target, temp); err != nil {
		return copyFile(s.blob(etag), file)
	}
	if err := os.Rename(temp, file); err != nil {
		os.Remove(temp)
		return err
	}
	return nil
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	return atomicfile.WriteFile(to, func(w io.Writer) error {
		_, err := io.Copy(w, src)
		return err
	})
}
