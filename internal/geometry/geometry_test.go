package geometry_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gopeft/gopeft/internal/geometry"
	"github.com/gopeft/gopeft/models"
)

// The number of parameters is the published one.
func TestConfigs(t *testing.T) {
	published := map[string]int{
		"llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496,
		"llama-3.2-1b": 1_235_814_400, "smollm2-135m": 134_515_008,
	}
	require.Len(t, geometry.Names(), len(published))
	for _, name := range geometry.Names() {
		config, err := geometry.Read(context.Background(), name)
		require.NoError(t, err)
		b, err := models.NewBlueprint(config)
		require.NoError(t, err, name)
		n := 0
		for _, p := range b.Parameters() {
			n += p.Size()
		}
		require.Equal(t, published[name], n, name)
	}
}

func TestRead(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	path := filepath.Join(dir, "config.json")
	require.NoError(t, os.WriteFile(path, []byte("{}"), 0o666))
	for _, name := range []string{dir, path} {
		data, err := geometry.Read(ctx, name)
		require.NoError(t, err)
		require.Equal(t, "{}", string(data))
	}
	_, err := geometry.Read(ctx, "llama-2-7c")
	require.ErrorContains(t, err, `did you mean "llama-2-7b"?`)
	_, err = geometry.Read(ctx, filepath.Join(dir, "no.json"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
