package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	maxRetries   = 5
	maxRedirects = 10
	maxListing   = 64 << 20
	maxWait      = 2 * time.Minute // the longest Retry-After that is obeyed
)

// client talks to one hub.
type client struct {
	*settings
	// follow obeys redirects; stay only those to the hub itself, since a
	// redirect to the storage carries the announced hash in its headers.
	follow, stay *http.Client
}

func newClient(s *settings) *client {
	c := &client{settings: s, follow: s.httpClient(), stay: s.httpClient()}
	c.follow.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if !sameOrigin(req.URL, via[0].URL) {
			req.Header.Del("Authorization")
		}
		return nil
	}
	c.stay.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("more than %d redirects", maxRedirects)
		}
		if !sameOrigin(req.URL, via[0].URL) {
			return http.ErrUseLastResponse
		}
		return nil
	}
	return c
}

func sameOrigin(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }

// temporary is an error that may go away when the request is repeated.
type temporary struct {
	err   error
	after time.Duration // the hub's wish; 0 if it has none
	dial  bool          // there was no connection at all
}

func (t *temporary) Error() string { return t.err.Error() }
func (t *temporary) Unwrap() error { return t.err }

// retry repeats attempt while it fails temporarily, with growing pauses. Where
// no connection comes about there most likely is no network: one repetition.
func (c *client) retry(ctx context.Context, attempt func() error) error {
	for n := 0; ; n++ {
		err := attempt()
		var t *temporary
		if !errors.As(err, &t) || n == maxRetries || t.dial && n > 0 || t.after > maxWait {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(c.delay<<n, t.after)):
		}
	}
}

// send makes one request and turns every answer that is no success into an
// error. allow lists further statuses to hand back. The caller closes the body.
func (c *client) send(ctx context.Context, by *http.Client, method, address string, header http.Header, allow ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "gopeft")
	req.Header.Set("Accept-Encoding", "identity")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := by.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var op *net.OpError
		var dns *net.DNSError
		dial := errors.As(err, &dns) || errors.As(err, &op) && op.Op == "dial"
		return nil, &temporary{err: err, dial: dial}
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	for _, code := range allow {
		if resp.StatusCode == code {
			return resp, nil
		}
	}
	resp.Body.Close()
	return nil, c.statusError(resp, address)
}

// statusError says what the hub's refusal means and what to do about it.
func (c *client) statusError(resp *http.Response, address string) error {
	says := strings.Trim(resp.Header.Get("X-Error-Message"), " ")
	if says != "" {
		says = fmt.Sprintf(" (the hub says: %.300s)", says)
	}
	base := fmt.Errorf("%s: status %d%s", address, resp.StatusCode, says)
	gated := resp.Header.Get("X-Error-Code") == "GatedRepo"
	switch code := resp.StatusCode; {
	case gated:
		return fmt.Errorf("%w: access has conditions: accept them at %s/%s and set HF_TOKEN: %w", base, c.endpoint, c.id, fs.ErrPermission)
	case code == http.StatusUnauthorized && c.token == "":
		return fmt.Errorf("%w: it does not exist, or it is private: check the spelling, or set HF_TOKEN: %w", base, fs.ErrPermission)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%w: it does not exist, or the access token is wrong or has expired: %w", base, fs.ErrPermission)
	case code == http.StatusForbidden:
		return fmt.Errorf("%w: the access token, if any, does not allow it: see %s/%s: %w", base, c.endpoint, c.id, fs.ErrPermission)
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %s: %w", base, notFound(resp.Header.Get("X-Error-Code")), fs.ErrNotExist)
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		return &temporary{err: base, after: min(time.Duration(max(seconds, 0)), 1e6) * time.Second}
	}
	return base
}

func notFound(errorCode string) string {
	switch errorCode {
	case "RevisionNotFound":
		return "the hub has the model, but not this revision"
	case "EntryNotFound":
		return "the hub has the model, but not this file"
	}
	return "the hub has no such model, revision or file"
}

var errStalled = errors.New("the connection stalled")

// stalled turns the cancellation by the watch back into a temporary error.
func stalled(ctx context.Context, err error) error {
	if err != nil && context.Cause(ctx) == errStalled {
		return &temporary{err: errStalled}
	}
	return err
}

// list asks for the revision's commit and its files.
func (c *client) list(ctx context.Context) (commit string, files []string, err error) {
	address := fmt.Sprintf("%s/api/models/%s/revision/%s", c.endpoint, c.id, url.PathEscape(c.revision))
	var info struct {
		SHA      string `json:"sha"`
		Siblings []struct {
			Name string `json:"rfilename"`
		} `json:"siblings"`
	}
	err = c.retry(ctx, func() error {
		ctx, cancel := context.WithTimeoutCause(ctx, c.stall, errStalled)
		defer cancel()
		resp, err := c.send(ctx, c.follow, http.MethodGet, address, nil)
		if err != nil {
			return stalled(ctx, err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxListing+1))
		if err != nil {
			return stalled(ctx, c.broken(ctx, fmt.Errorf("%s: %w", address, err)))
		}
		if len(text) > maxListing {
			return fmt.Errorf("%s: the answer has more than %d bytes", address, maxListing)
		}
		if err := json.Unmarshal(text, &info); err != nil {
			return fmt.Errorf("%s: the answer is not what a hub says: %w", address, err)
		}
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	if !commitPattern.MatchString(info.SHA) {
		return "", nil, fmt.Errorf("%s: want a commit of 40 hex digits, got %.50q", address, info.SHA)
	}
	for _, f := range info.Siblings {
		files = append(files, f.Name)
	}
	return info.SHA, files, nil
}

// broken is the error of a body that stopped in the middle.
func (c *client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &temporary{err: err}
}

// remote is a file as the hub announces it.
type remote struct {
	name string
	url  string
	etag string // SHA-256 of a large file, git blob hash of a small one
	size int64
}

var etagPattern = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// head asks for a file's size and hash.
func (c *client) head(ctx context.Context, commit, name string) (remote, error) {
	r := remote{name: name}
	var parts []string
	for _, p := range strings.Split(name, "/") {
		parts = append(parts, url.PathEscape(p))
	}
	r.url = fmt.Sprintf("%s/%s/resolve/%s/%s", c.endpoint, c.id, commit, strings.Join(parts, "/"))
	var header http.Header
	var length int64
	err := c.retry(ctx, func() error {
		ctx, cancel := context.WithTimeoutCause(ctx, c.stall, errStalled)
		defer cancel()
		resp, err := c.send(ctx, c.stay, http.MethodHead, r.url, nil, 301, 302, 303, 307, 308)
		if err != nil {
			return stalled(ctx, err)
		}
		resp.Body.Close()
		header, length = resp.Header, resp.ContentLength
		if resp.StatusCode != http.StatusOK {
			length = -1 // of the redirect, not of the file
		}
		return nil
	})
	if err != nil {
		return r, err
	}
	if got := header.Get("X-Repo-Commit"); got != "" && got != commit {
		return r, fmt.Errorf("%s: the hub answers for commit %.50q", r.url, got)
	}
	r.etag = strings.Trim(strings.TrimPrefix(firstOf(header, "X-Linked-Etag", "Etag"), "W/"), `"`)
	if !etagPattern.MatchString(r.etag) {
		return r, fmt.Errorf("%s: want an ETag that is a SHA-256 or a git hash to check the download by, got %.100q", r.url, r.etag)
	}
	r.size = length
	if s := header.Get("X-Linked-Size"); s != "" {
		if r.size, err = strconv.ParseInt(s, 10, 64); err != nil {
			r.size = -1
		}
	}
	if r.size < 0 {
		return r, fmt.Errorf("%s: the hub does not say the file's size", r.url)
	}
	return r, nil
}

func firstOf(h http.Header, names ...string) string {
	for _, n := range names {
		if v := h.Get(n); v != "" {
			return v
		}
	}
	return ""
}
