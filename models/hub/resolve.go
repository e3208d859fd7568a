package hub

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/gopeft/gopeft/internal/safetensors"
)

// resolve finds or downloads the snapshot of a hub id.
func (s *settings) resolve(ctx context.Context) (string, error) {
	if s.offline != "" {
		dir, err := s.fromCache()
		if err != nil {
			return "", fmt.Errorf("%w; %s: %s", err, s.offline, s.howToGet())
		}
		return dir, nil
	}
	c := newClient(s)
	commit, listing, err := c.list(ctx)
	var t *temporary
	if errors.As(err, &t) {
		dir, cacheErr := s.fromCache()
		if cacheErr != nil {
			return "", fmt.Errorf("%w; and %w", err, cacheErr)
		}
		if s.Warn != nil {
			s.Warn(fmt.Errorf("hub: model %q: using the cache, since the hub cannot be reached: %w", s.id, err))
		}
		return dir, nil
	}
	if err != nil {
		return "", err
	}
	files, err := s.wanted(listing)
	if err != nil {
		return "", err
	}
	if err := c.fetch(ctx, commit, files); err != nil {
		return "", err
	}
	if slices.Contains(files, safetensors.IndexName) {
		shards, err := safetensors.ShardNames(filepath.Join(s.snapshot(commit), safetensors.IndexName))
		if err == nil {
			err = checkShards(shards, listing)
		}
		if err == nil {
			err = c.fetch(ctx, commit, shards)
		}
		if err != nil {
			return "", err
		}
	}
	return s.snapshot(commit), s.saveRef(commit)
}

func checkShards(shards, listing []string) error {
	for _, shard := range shards {
		if err := checkFileName(shard); err != nil {
			return fmt.Errorf("%s: %w", safetensors.IndexName, err)
		}
		if !slices.Contains(listing, shard) {
			return fmt.Errorf("%s lists %s, which the repository does not have", safetensors.IndexName, shard)
		}
	}
	return nil
}

// fetch brings the files that the snapshot lacks.
func (c *client) fetch(ctx context.Context, commit string, names []string) error {
	var todo []remote
	var total int64
	for _, name := range names {
		if c.present(commit, name) {
			continue
		}
		r, err := c.head(ctx, commit, name)
		if err != nil {
			return err
		}
		todo = append(todo, r)
		total += r.size
	}
	done := int64(0)
	for _, r := range todo {
		report := func(n int64) {
			if c.Progress != nil {
				c.Progress(Progress{File: r.name, Done: n, Total: r.size, AllDone: done + n, AllTotal: total})
			}
		}
		if err := c.bring(ctx, r, report); err != nil {
			return fmt.Errorf("download %s: %w", r.name, err)
		}
		if err := c.link(commit, r.name, r.etag); err != nil {
			return fmt.Errorf("put %s into the cache: %w", r.name, err)
		}
		done += r.size
	}
	return nil
}

// bring makes sure that the blob is there, under the lock that
// huggingface_hub also takes.
func (c *client) bring(ctx context.Context, r remote, report func(int64)) error {
	locks := filepath.Join(c.cache, ".locks", filepath.Base(c.repo()))
	for _, dir := range []string{locks, filepath.Dir(c.blob(r.etag))} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	unlock, err := lock(ctx, filepath.Join(locks, r.etag+".lock"))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(c.blob(r.etag)); err == nil {
		return nil // another process or another file with the same content
	}
	return c.download(ctx, r, report)
}
