package peft_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/lora"
	"github.com/gopeft/gopeft/peft"
)

// Saving into a folder with other files leaves them, and replaces its own.
func TestSaveKeepsOtherFiles(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2})
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("mine"), 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "README.md"), []byte("my card"), 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(dir, configFile), []byte("old"), 0o666))
	for range 2 {
		require.NoError(t, pm.SavePretrained(dir))
		require.Equal(t, []string{"README.md", configFile, weightsFile, "notes.txt"}, names(t, dir))
		require.Equal(t, "my card", string(read(t, dir, "README.md")))
	}
	_, err = peft.LoadAdapter(base, dir)
	require.NoError(t, err)
	file := filepath.Join(dir, "notes.txt")
	require.ErrorContains(t, pm.SavePretrained(file), "it is a file, want a folder")
	require.Equal(t, "mine", string(read(t, file)))
}

// Nor does a folder lose them that is reached through a symbolic link.
func TestSaveThroughLinkKeepsOtherFiles(t *testing.T) {
	pm, err := peft.GetPeftModel(family(t, "llama"), lora.LoraConfig{R: 2})
	require.NoError(t, err)
	parent := t.TempDir()
	dir, link := filepath.Join(parent, "dir"), filepath.Join(parent, "link")
	require.NoError(t, os.Mkdir(dir, 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("mine"), 0o666))
	if err := os.Symlink(dir, link); err != nil {
		t.Skip("this system makes no symbolic links:", err)
	}
	for range 2 {
		require.NoError(t, pm.SavePretrained(link))
		require.Equal(t, []string{"README.md", configFile, weightsFile, "notes.txt"}, names(t, dir))
		require.Equal(t, []string{"dir", "link"}, entries(t, parent))
	}
}

func entries(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// The working folder can be saved into, empty or not.
func TestSaveIntoWorkingFolder(t *testing.T) {
	base := family(t, "llama")
	pm, err := peft.GetPeftModel(base, lora.LoraConfig{R: 2})
	require.NoError(t, err)
	t.Chdir(t.TempDir())
	for range 2 {
		require.NoError(t, pm.SavePretrained("."))
		require.Equal(t, []string{"README.md", configFile, weightsFile}, names(t, "."))
	}
	_, err = peft.LoadAdapter(base, ".")
	require.NoError(t, err)
}
