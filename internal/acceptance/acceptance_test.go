package acceptance

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every test that docs/acceptance.md names exists, and every numbered check of pefttest.
func TestAcceptanceList(t *testing.T) {
	root := filepath.Join("..", "..")
	page, err := os.ReadFile(filepath.Join(root, "docs", "acceptance.md"))
	require.NoError(t, err)
	suite, err := os.ReadFile(filepath.Join(root, "peft", "pefttest", "suite.go"))
	require.NoError(t, err)

	declaration := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	exists := map[string]bool{}
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, match := range declaration.FindAllSubmatch(source, -1) {
			exists[string(match[1])] = true
		}
		return err
	}))
	named := regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(page, -1)
	require.Greater(t, len(named), 60)
	for _, match := range named {
		require.True(t, exists[string(match[1])], "there is no %s", match[1])
	}
	for _, match := range regexp.MustCompile("`pefttest` \\((\\d+)\\)").FindAllSubmatch(page, -1) {
		require.Regexp(t, `\((\d+, )*`+string(match[1])+`(, \d+)*\)"`, string(suite), "pefttest has no check of item %s", match[1])
	}
}
