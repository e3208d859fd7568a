package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

var errCrash = errors.New("crash")

// crasher stops the world ahead of the n-th change: that one and all later
// ones, the cleaning up included, do not happen.
type crasher struct {
	n     int
	steps []string
}

func (c *crasher) before(op, _ string) error {
	c.steps = append(c.steps, op)
	if len(c.steps) > c.n {
		return errCrash
	}
	return nil
}

// untilDone runs attempt with a crash ahead of change 0, 1, 2, ... until it
// gets through, and returns the steps of that complete run.
func untilDone(t *testing.T, attempt func(t *testing.T, c *crasher) error) []string {
	t.Helper()
	for n := range 200 {
		c := &crasher{n: n}
		var err error
		t.Run(fmt.Sprintf("crash ahead of change %d", n), func(t *testing.T) { err = attempt(t, c) })
		if err == nil {
			require.Greater(t, n, 3)
			return c.steps
		}
		require.ErrorIs(t, err, errCrash)
	}
	t.Fatal("never gets through")
	return nil
}

func TestWriteFileCrash(t *testing.T) {
	for _, existing := range []string{"", "old content"} {
		t.Run(fmt.Sprintf("old=%q", existing), func(t *testing.T) {
			steps := untilDone(t, func(t *testing.T, c *crasher) error {
				dir := t.TempDir()
				path := filepath.Join(dir, "f")
				if existing != "" {
					require.NoError(t, os.WriteFile(path, []byte(existing), 0o640))
				}
				s := &system{before: c.before}
				err := s.writeFile(path, func(w io.Writer) error {
					for _, part := range []string{"new ", "con", "tent"} {
						if _, err := io.WriteString(w, part); err != nil {
							return err
						}
					}
					return nil
				})
				got, _ := os.ReadFile(path)
				require.Contains(t, []string{existing, "new content"}, string(got))
				if err == nil {
					require.Equal(t, "new content", string(got))
				}
				require.NoError(t, Recover(path))
				require.LessOrEqual(t, len(names(t, dir)), 1)
				return err
			})
			// Without these two syncs a power cut could leave an empty file or the old name.
			require.Less(t, slices.Index(steps, "sync"), slices.Index(steps, "rename"))
			require.Equal(t, "syncdir", steps[len(steps)-1])
		})
	}
}

func TestWriteDirCrash(t *testing.T) {
	for _, noExchange := range []bool{false, true} {
		for _, existing := range []bool{false, true} {
			t.Run(fmt.Sprintf("noExchange=%v,old=%v", noExchange, existing), func(t *testing.T) {
				steps := untilDone(t, func(t *testing.T, c *crasher) error {
					return crashDir(t, c, noExchange, existing)
				})
				first := slices.IndexFunc(steps, func(s string) bool { return s == "rename" || s == "exchange" })
				require.Equal(t, []string{"sync", "sync", "syncdir", "syncdir"}, steps[first-4:first])
				require.Contains(t, steps[first:], "syncdir")
			})
		}
	}
}

func crashDir(t *testing.T, c *crasher, noExchange, existing bool) error {
	parent := t.TempDir()
	path := filepath.Join(parent, "d")
	oldTree := map[string]string(nil)
	if existing {
		oldTree = map[string]string{"a": "old a", "only-old": "x"}
		writeTree(t, path, oldTree)
	}
	newTree := map[string]string{"a": "new a", "sub/b": "new b"}
	s := &system{before: c.before, noExchange: noExchange}
	err := s.writeDir(path, func(dir string) error {
		for _, name := range []string{"a", "sub/b"} {
			if err := c.before("fill", name); err != nil {
				return err
			}
			writeTree(t, dir, map[string]string{name: newTree[name]})
		}
		return nil
	})
	got := readTree(t, path)
	if got == nil && existing {
		// Only between the two renames, and the old folder is still there.
		require.True(t, noExchange || !canExchange(t))
		require.NoError(t, Recover(path))
		got = readTree(t, path)
	}
	if !slices.ContainsFunc([]map[string]string{oldTree, newTree}, func(want map[string]string) bool {
		return fmt.Sprint(want) == fmt.Sprint(got)
	}) {
		t.Errorf("neither old nor new: %v", got)
	}
	if err == nil {
		require.Equal(t, newTree, got)
		require.Equal(t, []string{"d"}, names(t, parent))
	}
	require.NoError(t, Recover(path))
	require.Equal(t, got, readTree(t, path))
	require.LessOrEqual(t, len(names(t, parent)), 1)
	return err
}

// A writer that starts after a crash between the two renames must not leave
// the old folder lost when it fails itself.
func TestWriteDirRestoresFirst(t *testing.T) {
	parent := t.TempDir()
	path := filepath.Join(parent, "d")
	writeTree(t, path+oldInfix+"0123456789abcdef", map[string]string{"a": "old"})
	err := WriteDir(path, func(string) error { return errCrash })
	require.ErrorIs(t, err, errCrash)
	require.Equal(t, map[string]string{"a": "old"}, readTree(t, path))
}

// If the second of the two renames fails, the first is taken back.
func TestWriteDirRollsBack(t *testing.T) {
	parent := t.TempDir()
	path := filepath.Join(parent, "d")
	writeTree(t, path, map[string]string{"a": "old"})
	renames := 0
	s := &system{noExchange: true, before: func(op, _ string) error {
		if op == "rename" {
			if renames++; renames == 2 {
				return errCrash
			}
		}
		return nil
	}}
	require.ErrorIs(t, s.writeDir(path, func(string) error { return nil }), errCrash)
	require.Equal(t, map[string]string{"a": "old"}, readTree(t, path))
	require.Equal(t, []string{"d"}, names(t, parent))
}

func TestRecoverRefusesToGuess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	writeTree(t, path+oldInfix+"0123456789abcdef", map[string]string{"a": "1"})
	writeTree(t, path+oldInfix+"0123456789abcdee", map[string]string{"a": "2"})
	require.ErrorContains(t, Recover(path), "2 backups")
}

func TestRecoverLeavesOthersAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"d.part-final", "d.old-", "d.part-0123456789abcdeX", "e.part-0123456789abcdef"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o666))
	}
	before := names(t, dir)
	require.NoError(t, Recover(filepath.Join(dir, "d")))
	require.Equal(t, before, names(t, dir))
}

func canExchange(t *testing.T) bool {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	require.NoError(t, os.Mkdir(a, 0o777))
	require.NoError(t, os.Mkdir(b, 0o777))
	return exchange(a, b) == nil
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func writeTree(t *testing.T, root string, tree map[string]string) {
	t.Helper()
	for name, content := range tree {
		p := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o777))
		require.NoError(t, os.WriteFile(p, []byte(content), 0o666))
	}
}

// readTree returns nil for a missing folder.
func readTree(t *testing.T, root string) map[string]string {
	t.Helper()
	if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	tree := map[string]string{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		name, _ := filepath.Rel(root, path)
		tree[filepath.ToSlash(name)] = string(content)
		return err
	}))
	return tree
}
