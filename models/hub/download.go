package hub

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// errCorrupt is a complete file with the wrong content.
var errCorrupt = errors.New("wrong content")

// download gets the blob through BLOB.incomplete. The caller holds the lock.
func (c *client) download(ctx context.Context, r remote, report func(int64)) error {
	part := c.blob(r.etag) + ".incomplete"
	_, err := os.Stat(part)
	resumed := err == nil
	err = c.downloadPart(ctx, r, part, report)
	if errors.Is(err, errCorrupt) && resumed {
		// What an earlier attempt left may be to blame: once more from zero.
		err = c.downloadPart(ctx, r, part, report)
	}
	if err != nil {
		return err
	}
	return os.Rename(part, c.blob(r.etag))
}

// downloadPart completes, checks and syncs the file part. A part with the
// wrong content is removed, an unfinished one is kept.
func (c *client) downloadPart(ctx context.Context, r remote, part string, report func(int64)) (err error) {
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if errors.Is(err, errCorrupt) {
			os.Remove(part)
		}
	}()
	b := &body{client: c, remote: r, file: f, hash: newHash(r), report: report}
	if err := b.start(); err != nil {
		return err
	}
	report(b.done)
	for b.done < r.size {
		if err := c.retry(ctx, func() error { return b.advance(ctx) }); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(b.hash.Sum(nil)); got != r.etag {
		return fmt.Errorf("%w: %s has hash %s, the hub announced %s", errCorrupt, r.url, got, r.etag)
	}
	report(b.done)
	return f.Sync()
}

// newHash returns the hash that the ETag is of: SHA-256 for files in large
// file storage, git's blob hash for the others.
func newHash(r remote) hash.Hash {
	if len(r.etag) == 2*sha256.Size {
		return sha256.New()
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", r.size)
	return h
}

// body is a file that grows until it is complete.
type body struct {
	*client
	remote
	file   *os.File
	hash   hash.Hash
	done   int64
	report func(int64)
	last   time.Time // of the last report
	resets int       // how often the file was begun again
}

// maxResets ends the quarrel with a server that neither resumes nor delivers.
const maxResets = 3

// start takes over what an earlier attempt left.
func (b *body) start() error {
	info, err := b.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() > b.size {
		return b.restart()
	}
	b.done, err = io.Copy(b.hash, b.file)
	return err
}

func (b *body) restart() error {
	if b.resets++; b.resets > maxResets {
		return fmt.Errorf("%s: begun again %d times, and it still breaks off", b.url, maxResets)
	}
	b.hash, b.done = newHash(b.remote), 0
	if err := b.file.Truncate(0); err != nil {
		return err
	}
	_, err := b.file.Seek(0, io.SeekStart)
	return err
}

// advance is get, but a break in the middle is no failure if bytes came: the
// next request goes on from there with fresh patience.
func (b *body) advance(ctx context.Context) error {
	before := b.done
	err := b.get(ctx)
	var t *temporary
	if errors.As(err, &t) && b.done > before {
		return nil
	}
	return err
}

// get makes one request for the rest and appends what comes.
func (b *body) get(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(b.stall, func() { cancel(errStalled) })
	defer watch.Stop()

	header := http.Header{}
	if b.done > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.done))
	}
	resp, err := b.send(ctx, b.follow, http.MethodGet, b.url, header, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	if err != nil {
		return stalled(ctx, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK && b.done > 0: // the server knows no ranges
		if err := b.restart(); err != nil {
			return err
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		if err := b.restart(); err != nil {
			return err
		}
		return &temporary{err: fmt.Errorf("%s: the server refuses to resume", b.url)}
	case resp.StatusCode == http.StatusPartialContent &&
		!strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.done)):
		return fmt.Errorf("%s: asked for bytes from %d, got %.100q", b.url, b.done, resp.Header.Get("Content-Range"))
	}
	if resp.Header.Get("Content-Encoding") != "" {
		return fmt.Errorf("%s: the server encoded the file as %.50q unasked", b.url, resp.Header.Get("Content-Encoding"))
	}
	return stalled(ctx, b.append(ctx, resp.Body, watch))
}

func (b *body) append(ctx context.Context, from io.Reader, watch *time.Timer) error {
	buf := make([]byte, 1<<18)
	for {
		n, err := from.Read(buf)
		watch.Reset(b.stall)
		if n > 0 {
			if b.done+int64(n) > b.size {
				return fmt.Errorf("%w: %s has more than the %d bytes that the hub announced", errCorrupt, b.url, b.size)
			}
			if _, err := b.file.Write(buf[:n]); err != nil {
				return fmt.Errorf("%s: %w", filepath.Base(b.file.Name()), err)
			}
			b.hash.Write(buf[:n])
			b.done += int64(n)
			if now := time.Now(); now.Sub(b.last) > 200*time.Millisecond {
				b.last = now
				b.report(b.done)
			}
		}
		if err == io.EOF {
			if b.done < b.size {
				err = io.ErrUnexpectedEOF
			} else {
				return nil
			}
		}
		if err != nil {
			return b.broken(ctx, fmt.Errorf("%s: stopped at byte %d of %d: %w", b.url, b.done, b.size, err))
		}
	}
}
